"""The denoiser D(z_t, t, z_bar, x): an estimate of z_0."""

from typing import NamedTuple, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from fairseq.modules.fairseq_dropout import FairseqDropout

from .embedding import Positions, TimeEmbedding
from .transformer import KeyValues, LayerConfig, Layout, TransformerLayer, final_norm


class Memory(NamedTuple):
    """The source as the denoiser sees it: keys and values a layer, computed once a sentence.
    ``mask`` (S, L) is True at real source tokens."""

    layers: Tuple[KeyValues, ...]
    mask: Tensor

    def select(self, rows: Tensor) -> "Memory":
        """The memory of the sentences ``rows`` alone."""
        return Memory(tuple(layer.select(rows) for layer in self.layers), self.mask[rows])


class Target(NamedTuple):
    """What is constant while a target is denoised: the ``layout`` of its positions and their features
    ``positions``, (B, T, d) or packed."""

    layout: Layout
    positions: Tensor

    def select(self, rows: Tensor) -> "Target":
        mask = self.layout.mask[rows]
        layout = Layout(mask) if self.layout.index is None else Layout.packed(mask)
        return Target(layout, layout.pack(self.layout.unpack(self.positions)[rows]))


class Denoiser(nn.Module):
    """A bidirectional transformer on z_t and the self-conditioning estimate.

    Args:
        cfg: layer sizes, with ``memory_dim`` the encoder's width.
        latent_dim: D.
    """

    def __init__(self, cfg: LayerConfig, layers: int, latent_dim: int, positions: Positions):
        super().__init__()
        self.input = nn.Linear(2 * latent_dim, cfg.dim)
        self.time, self.positions = TimeEmbedding(cfg.dim), positions
        self.dropout = FairseqDropout(cfg.dropout)
        self.layers = nn.ModuleList(TransformerLayer(cfg) for _ in range(layers))
        self.norm = final_norm(cfg.dim, cfg.pre_norm)
        self.output = nn.Linear(cfg.dim, latent_dim)
        nn.init.normal_(self.output.weight, std=0.1 * cfg.dim**-0.5)  # estimates begin near the mean, 0

    def memory(self, states: Tensor, mask: Tensor) -> Memory:
        """Cross-attention keys and values of encoder states (S, L, d)."""
        padded = Layout(mask)
        return Memory(tuple(layer.cross_attention.project(states, padded) for layer in self.layers), mask)

    def target(self, mask: Tensor) -> Target:
        """What the evaluations for a mask (B, T) share; in evaluation they compute nothing for padding."""
        layout = Layout(mask) if self.training else Layout.packed(mask)
        return Target(layout, layout.pack(self.positions(mask)))

    def forward(self, z: Tensor, t: Tensor, z_bar: Tensor, target: Target, memory: Memory) -> Tensor:
        """Estimate z_0.

        Args:
            z: (B, T, D), scaled by :meth:`Process.input_scale`.
            t: times in [0, 1], (B, 1), (B, T) or (1, 1).
            z_bar: (B, T, D) self-conditioning estimate, zero where there is none.
            target: of B targets.
            memory: of B sentences, or of S where B is a multiple of S (candidates of one sentence
                follow each other).
        Returns:
            (B, T, D) float32.
        """
        layout = target.layout
        x = self.input(layout.pack(torch.cat((z, z_bar), dim=-1)).type_as(self.input.weight))
        x = self.dropout(x + self._time(t, layout) + target.positions.type_as(x))
        for layer, key_values in zip(self.layers, memory.layers):
            x = layer(x, layout, key_values, memory.mask)
        return layout.unpack(self.output(self.norm(x)).float())

    def _time(self, t: Tensor, layout: Layout) -> Tensor:
        if t.size(1) == 1:
            return layout.pack(self.time(t).expand(*layout.mask.shape, -1))
        return self.time(layout.pack(t.unsqueeze(-1)).squeeze(-1))
