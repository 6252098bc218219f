"""What networks on a target sequence share: the source's memory, positions and a bidirectional transformer."""

from typing import NamedTuple, Optional, Tuple

import torch.nn as nn
from torch import Tensor

from fairseq.modules.fairseq_dropout import FairseqDropout

from ..compat import attention_dtype
from .embedding import Positions, TimeEmbedding
from .transformer import KeyValues, LayerConfig, Layout, TransformerLayer, attention_bias, final_norm


class Memory(NamedTuple):
    """The source as a target network sees it: keys and values a layer, computed once a sentence, and the ``bias``
    (S, 1, 1, L) of its real tokens (:func:`.transformer.attention_bias`)."""

    layers: Tuple[KeyValues, ...]
    bias: Tensor

    def flat(self) -> Tuple[Tensor, ...]:
        """Its tensors, the bias first."""
        return (self.bias, *(part for layer in self.layers for part in layer))

    @classmethod
    def of(cls, bias: Tensor, *parts: Tensor) -> "Memory":
        """The one that has these tensors, as :meth:`flat` gives them."""
        return cls(tuple(map(KeyValues, parts[::2], parts[1::2])), bias)

    def select(self, rows: Tensor) -> "Memory":
        """The memory of the sentences ``rows`` alone."""
        return Memory(tuple(layer.select(rows) for layer in self.layers), self.bias[rows])


class Target(NamedTuple):
    """What is constant while a target is decoded: the ``layout`` of its positions, their features ``positions``,
    (B, T, d) or packed, and the ``bias`` (B, 1, 1, T) of its real ones."""

    layout: Layout
    positions: Tensor
    bias: Tensor

    def select(self, rows: Tensor) -> "Target":
        mask = self.layout.mask[rows]
        layout = Layout(mask) if self.layout.index is None else Layout.packed(mask)
        return Target(layout, layout.pack(self.layout.unpack(self.positions)[rows]), self.bias[rows])


class TargetNetwork(nn.Module):
    """A bidirectional transformer from features of each position to vectors of the latent width.

    Args:
        cfg: layer sizes, with ``memory_dim`` the encoder's width.
        input_dim: width of the features.
        latent_dim: D.
    """

    def __init__(self, cfg: LayerConfig, layers: int, input_dim: int, latent_dim: int, positions: Positions):
        super().__init__()
        self.input = nn.Linear(input_dim, cfg.dim)
        self.time, self.positions = TimeEmbedding(cfg.dim), positions
        self.dropout = FairseqDropout(cfg.dropout)
        self.layers = nn.ModuleList(TransformerLayer(cfg) for _ in range(layers))
        self.norm = final_norm(cfg.dim, cfg.pre_norm)
        self.output = nn.Linear(cfg.dim, latent_dim)
        nn.init.normal_(self.output.weight, std=0.1 * cfg.dim**-0.5)  # outputs begin near 0

    def memory(self, states: Tensor, mask: Tensor) -> Memory:
        """Cross-attention keys and values of encoder states (S, L, d)."""
        padded = Layout(mask)
        layers = tuple(layer.cross_attention.project(states, padded) for layer in self.layers)
        return Memory(layers, attention_bias(mask, self.input.weight))

    def target(self, mask: Tensor) -> Target:
        """What the evaluations for a mask (B, T) share; in evaluation they compute nothing for padding."""
        layout = Layout(mask) if self.training else Layout.packed(mask)
        return Target(layout, layout.pack(self.positions(mask)), attention_bias(mask, self.input.weight))

    def run(self, x: Tensor, target: Target, memory: Memory, condition: Optional[Tensor] = None) -> Tensor:
        """The layers on x, without positions and as the target's layout says, and a condition (B, 1, d) or (1, 1, d)
        for adaptive norms.

        The memory is of B sentences, or of S where B is a multiple of S (candidates of one sentence follow
        each other).  Returns (B, T, D) float32.
        """
        layout = target.layout
        condition = None if condition is None else layout.spread(condition)
        x = self.dropout(x + target.positions.type_as(x))
        biases = [bias.to(attention_dtype(x)) for bias in (target.bias, memory.bias)]
        for layer, key_values in zip(self.layers, memory.layers):
            x = layer(x, layout, biases[0], key_values, biases[1], condition)
        return layout.unpack(self.output(self.norm(x)).float())
