"""Transformer layers without causality, shared by the encoder and the target networks.

fairseq's own layers are not used: their keys differ between fairseq 0.12.2 and main, so checkpoints
would not load across the two, and they compute cross-attention keys and values anew at every step.
Layer norm and dropout are fairseq's (NVIDIA apex' fused layer norm is used where it is installed).
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.functional import pad

from fairseq import utils
from fairseq.modules import LayerNorm
from fairseq.modules.fairseq_dropout import FairseqDropout

from ..compat import attention_dtype, scaled_dot_product_attention
from .places import Places


@dataclass(frozen=True)
class LayerConfig:
    """The sizes of one layer; ``memory_dim`` None: no cross-attention; ``condition_dim``: its norms adapt to a
    condition of this width."""

    dim: int
    ffn_dim: int
    heads: int
    dropout: float
    attention_dropout: float
    activation_dropout: float
    activation: str
    pre_norm: bool
    memory_dim: Optional[int] = None
    condition_dim: Optional[int] = None


class Layout(NamedTuple):
    """Where a batch's real positions are.

    ``mask`` (B, T) is True at them.  A *padded* batch is (B, T, d).  A *packed* one is (N, d), the real positions
    alone, at ``index`` (N,) of the flattened batch: layers then spend nothing on padding.  ``places`` (B T,) says where
    each position of the batch stands among the real ones, padding behind them all, at N.
    """

    mask: Tensor
    index: Optional[Tensor] = None
    places: Optional[Tensor] = None

    @classmethod
    def packed(cls, mask: Tensor) -> "Layout":
        """Packed, unless there is no padding, or sizes are fixed."""
        index, real = Places.of(mask).index, mask.flatten()
        if index is None or len(index) == len(real):
            return cls(mask)
        return cls(mask, index, torch.where(real, real.long().cumsum(0) - 1, real.sum()))

    def pack(self, x: Tensor) -> Tensor:
        """What layers compute on, of (B, T, d)."""
        return x if self.index is None else x.flatten(0, 1)[self.index]

    def spread(self, x: Tensor) -> Tensor:
        """What rows have in common, (B, 1, d) or (1, 1, d), in a shape that broadcasts over what :meth:`pack` gives."""
        if self.index is None:
            return x
        return x[0] if len(x) == 1 else self.pack(x.expand(-1, self.mask.size(1), -1))

    def unpack(self, x: Tensor) -> Tensor:
        """(B, T, d) of what layers computed; zero at padding where it was packed."""
        if self.index is None:
            return x
        return pad(x, (0, 0, 0, 1))[self.places].view(*self.mask.shape, -1)


def attention_bias(mask: Tensor, like: Tensor) -> Tensor:
    """What attention adds to its scores, (S, 1, 1, L): nothing where ``mask`` (S, L) is True, else minus infinity; in the
    precision of attention on tensors ``like`` that.

    Attention would make it of a boolean mask, too, but once in each layer.
    """
    bias = torch.zeros(mask.shape, dtype=attention_dtype(like), device=mask.device)
    return bias.masked_fill(~mask, -float("inf"))[:, None, None]


class KeyValues(NamedTuple):
    """Keys and values of an attention, (B, heads, S, d / heads)."""

    keys: Tensor
    values: Tensor

    def select(self, rows: Tensor) -> "KeyValues":
        return KeyValues(self.keys[rows], self.values[rows])


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be computed once and reused."""

    def __init__(self, dim: int, heads: int, dropout: float, memory_dim: Optional[int] = None):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(memory_dim or dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        for layer, gain in ((self.query, 0.5**0.5), (self.key_value, 0.5**0.5), (self.output, 1)):
            nn.init.xavier_uniform_(layer.weight, gain=gain)
            nn.init.zeros_(layer.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def project(self, memory: Tensor, layout: Layout) -> KeyValues:
        """Keys and values of a memory of width d_memory."""
        return KeyValues(*map(self._split, layout.unpack(self.key_value(memory)).chunk(2, dim=-1)))

    def forward(self, x: Tensor, layout: Layout, memory: KeyValues, bias: Tensor) -> Tensor:
        """Attend from x, of B rows, to a memory of S rows (S, heads, L, d / heads); ``bias``: :func:`attention_bias`.

        B is a multiple of S: each memory row serves B / S rows of x that follow each other, without copies.
        """
        queries = layout.unpack(self.query(x))
        attended = scaled_dot_product_attention(
            self._split(queries.reshape(bias.size(0), -1, queries.size(-1))),
            memory.keys,
            memory.values,
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(layout.pack(attended.transpose(1, 2).reshape(queries.shape)))


class FeedForward(nn.Module):
    def __init__(self, cfg: LayerConfig):
        super().__init__()
        self.inner = nn.Linear(cfg.dim, cfg.ffn_dim)
        self.outer = nn.Linear(cfg.ffn_dim, cfg.dim)
        self.activation = utils.get_activation_fn(cfg.activation)
        self.dropout = FairseqDropout(cfg.activation_dropout)
        for layer in (self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(self.activation(self.inner(x))))


class AdaptiveNorm(nn.Module):
    """Layer norm whose scale and shift come from a condition; at first, it is layer norm (Peebles and Xie, 2022)."""

    def __init__(self, dim: int, condition_dim: int):
        super().__init__()
        self.norm = LayerNorm(dim)
        self.modulation = nn.Linear(condition_dim, 2 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (..., d), condition (..., d_condition), which broadcast; see :meth:`Layout.spread`."""
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


def layer_norm(cfg: LayerConfig) -> nn.Module:
    """The norm of a block."""
    return LayerNorm(cfg.dim) if cfg.condition_dim is None else AdaptiveNorm(cfg.dim, cfg.condition_dim)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention where the layer has a memory, and a feed-forward network."""

    def __init__(self, cfg: LayerConfig):
        super().__init__()
        self.pre_norm = cfg.pre_norm
        self.self_attention = Attention(cfg.dim, cfg.heads, cfg.attention_dropout)
        self.self_norm = layer_norm(cfg)
        if cfg.memory_dim is not None:
            self.cross_attention = Attention(cfg.dim, cfg.heads, cfg.attention_dropout, cfg.memory_dim)
            self.cross_norm = layer_norm(cfg)
        self.feed_forward = FeedForward(cfg)
        self.ffn_norm = layer_norm(cfg)
        self.dropout = FairseqDropout(cfg.dropout)

    def _residual(self, x: Tensor, norm: nn.Module, block, condition: Tuple[Tensor, ...]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(block(norm(x, *condition)))
        return norm(x + self.dropout(block(x)), *condition)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        bias: Tensor,
        memory: Optional[KeyValues] = None,
        memory_bias: Optional[Tensor] = None,
        condition: Optional[Tensor] = None,
    ) -> Tensor:
        """x as ``layout`` says, (B, T, d) or packed, and the bias of its mask; the memory and its bias as
        :meth:`Attention.forward` has them; the condition, where the layer's norms adapt to one, as
        :class:`AdaptiveNorm` has it."""
        given = () if condition is None else (condition,)
        x = self._residual(x, self.self_norm, lambda y: self._attend_to_itself(y, layout, bias), given)
        if memory is not None:
            attend = lambda y: self.cross_attention(y, layout, memory, memory_bias)
            x = self._residual(x, self.cross_norm, attend, given)
        return self._residual(x, self.ffn_norm, self.feed_forward, given)

    def _attend_to_itself(self, x: Tensor, layout: Layout, bias: Tensor) -> Tensor:
        return self.self_attention(x, layout, self.self_attention.project(x, layout), bias)


def final_norm(dim: int, pre_norm: bool) -> nn.Module:
    """The norm after the last layer: pre-norm stacks need one, post-norm stacks end in one."""
    return LayerNorm(dim) if pre_norm else nn.Identity()
