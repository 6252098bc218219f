"""The probability path from noise (t = 0) to data (t = 1): which tokens of x_t are already those of x_1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.noise import fold, uniform

SOURCES = ("uniform", "mask")


def kappa(t: Tensor) -> Tensor:
    """The share of data tokens in x_t."""
    return t


def kappa_rate(t: Tensor) -> Tensor:
    """d kappa / dt."""
    return torch.ones_like(t)


@dataclass(frozen=True)
class Path:
    """x_t,i = x_1,i with probability kappa_t, else x_0,i (method, section 7).

    Attributes:
        source: ``uniform``: x_0 is a random word; ``mask``: x_0 is the mask.
        first, end: the words are the ids first, ..., end - 1; special tokens lie outside.
        mask: id of the mask.

    Raises:
        ValueError: unknown source, or no words.
    """

    source: str
    first: int
    end: int
    mask: int

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"unknown noise source '{self.source}' (known: {', '.join(SOURCES)})")
        if self.end <= self.first:
            raise ValueError("the dictionary has no words")

    def noise(self, key: Tensor) -> Tensor:
        """x_0: an id for each key."""
        if self.source == "mask":
            return torch.full_like(key, self.mask)
        count = self.end - self.first
        return self.first + (uniform(fold(key, "source")) * count).long().clamp(max=count - 1)

    def corrupt(self, x_1: Tensor, t: Tensor, key: Tensor) -> Tensor:
        """x_t from x_1, with times t and a key for each token, all broadcast to x_1's shape."""
        return torch.where(uniform(fold(key, "path")) < kappa(t), x_1, self.noise(key))
