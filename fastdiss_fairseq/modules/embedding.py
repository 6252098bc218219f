"""Token embeddings: the latent space of the diffusion, and position and time features."""

import math
from typing import NamedTuple, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class Kept(NamedTuple):
    """A ``table`` of the rows of ``weight`` when that had this ``version`` and ``total``."""

    weight: Tensor
    version: int
    total: float
    table: Tensor

    def is_of(self, weight: Tensor) -> bool:
        """Whether a weight is still what it was.  What is written through ``weight.data``, as by fairseq's optimizers, does
        not count as a version, so there is the sum."""
        there = self.weight.data_ptr() == weight.data_ptr() and self.version == weight._version
        return there and self.total == float(weight.sum())


class LatentEmbedding(nn.Module):
    """The table E whose rows are z_0, layer-normalised so that every coordinate has unit variance.

    All rows have the norm sqrt(D), so the token with the largest logit is the nearest one.

    Args:
        vocabulary: number of tokens V.
        dim: latent width D.
    """

    def __init__(self, vocabulary: int, dim: int):
        super().__init__()
        self.dim = dim
        self.generation_fast = False
        self.kept: Optional[Kept] = None
        self.weight = nn.Parameter(torch.empty(vocabulary, dim))
        nn.init.normal_(self.weight, std=dim**-0.5)  # small: the normalised rows then learn faster

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., T) ids to (..., T, D) float32."""
        return self._normalise(F.embedding(tokens, self.weight))

    def make_generation_fast_(self, **options) -> None:
        """Called by fairseq for a model that is no longer trained: keep the table, on a CPU, where making it takes long."""
        self.generation_fast = True

    def table(self) -> Tensor:
        """All rows (V, D), in the parameters' precision; not to be written to, since they may be kept until the weights
        change."""
        weight, kept = self.weight, self.kept
        if not self.generation_fast or torch.is_grad_enabled() or weight.device.type != "cpu" or weight.is_inference():
            self.kept = None
            return self._table()
        if kept is None or not kept.is_of(weight):
            with torch.inference_mode(False), torch.no_grad():
                self.kept = kept = Kept(weight.detach(), weight._version, float(weight.sum()), self._table())
        return kept.table

    def _table(self) -> Tensor:
        return self._normalise(self.weight).type_as(self.weight)

    def _normalise(self, rows: Tensor) -> Tensor:
        return F.layer_norm(rows.float(), (self.dim,), eps=1e-8)


class ProjectedEmbedding(nn.Module):
    """A shared latent table seen by the encoder: E followed by a linear map to the model width.

    The table is no part of this module, but of the model: under a second name a moving average would decay it twice.
    """

    def __init__(self, latent: LatentEmbedding, dim: int):
        super().__init__()
        self.__dict__["latent"] = latent
        self.project = nn.Linear(latent.weight.size(1), dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.project(self.latent(tokens).type_as(self.project.weight))


class ScaledEmbedding(nn.Module):
    """A table of its own for the encoder, scaled by sqrt(d) (Vaswani et al., 2017)."""

    def __init__(self, vocabulary: int, dim: int, padding_idx: int):
        super().__init__()
        self.table = nn.Embedding(vocabulary, dim, padding_idx)
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        nn.init.zeros_(self.table.weight[padding_idx])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens) * math.sqrt(self.table.embedding_dim)


def sinusoid(values: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of real numbers: (...,) to (..., dim) float32, dim even."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=values.device) * (-math.log(10000) / max(half - 1, 1)))
    angles = values.float().unsqueeze(-1) * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Positions(nn.Module):
    """Position features, learned or sinusoidal; independent of the side that padding stands on.

    Args:
        maximum: the largest number of positions (of a learned table; sinusoids have no limit).
    """

    def __init__(self, maximum: int, dim: int, learned: bool):
        super().__init__()
        self.dim = dim
        self.table = nn.Embedding(maximum, dim) if learned else None
        if learned:
            nn.init.normal_(self.table.weight, std=dim**-0.5)

    def forward(self, mask: Tensor) -> Tensor:
        """mask (B, T), True at real tokens, to (B, T, d)."""
        index = (mask.long().cumsum(1) - 1).clamp(min=0)
        return sinusoid(index, self.dim) if self.table is None else self.table(index)


class TimeEmbedding(nn.Module):
    """Features of the diffusion time: sinusoids of 1000 t, then a two-layer perceptron."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """(...,) in [0, 1] to (..., d)."""
        weight = self.layers[0].weight
        return self.layers(sinusoid(1000 * t, weight.size(1)).type_as(weight))
