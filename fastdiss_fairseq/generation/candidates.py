"""Candidates of a batch, however a model makes them."""

from typing import List, NamedTuple

import torch
from torch import Tensor

from ..diffusion.sampling import Read


class Candidates(NamedTuple):
    """Decoded candidates of S sentences: ``tokens``, ``log_probs`` and ``mask`` (S, C, T),
    ``steps`` (S,) network evaluations, and ``history``, what stood after each step."""

    tokens: Tensor
    log_probs: Tensor
    mask: Tensor
    steps: Tensor
    history: List[Read]

    def on_host(self) -> "Candidates":
        """The same on the CPU, fetched as a whole before they are looked at one by one."""
        history = [
            Read(step.tokens.cpu(), step.log_probs.cpu(), None if step.rows is None else step.rows.cpu())
            for step in self.history
        ]
        return Candidates(self.tokens.cpu(), self.log_probs.cpu(), self.mask.cpu(), self.steps.cpu(), history)


class Special(NamedTuple):
    """Ids that are no words."""

    pad: int
    bos: int
    eos: int

    @classmethod
    def of(cls, dictionary) -> "Special":
        return cls(dictionary.pad(), dictionary.bos(), dictionary.eos())


def last_positions(mask: Tensor) -> Tensor:
    """True at the last real position of each candidate, where the sentence ends; mask (S, C, T)."""
    return mask & ~torch.cat((mask[..., 1:], torch.zeros_like(mask[..., :1])), dim=-1)
