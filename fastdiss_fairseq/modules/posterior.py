"""The network of discrete flow matching: p(x_1 | x_t, t, h, x), one distribution for each position."""

from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from .embedding import Positions, TimeEmbedding
from .target import Memory, Target, TargetNetwork
from .transformer import LayerConfig


class Posterior(TargetNetwork):
    """A bidirectional transformer on the embeddings of x_t whose norms adapt to t and to the step size h; arguments
    as in :class:`TargetNetwork`.  Its outputs times the embedding table are the logits."""

    def __init__(self, cfg: LayerConfig, layers: int, latent_dim: int, positions: Positions):
        super().__init__(replace(cfg, condition_dim=cfg.dim), layers, latent_dim, latent_dim, positions)
        self.step = TimeEmbedding(cfg.dim)
        self.join = nn.Sequential(nn.Linear(2 * cfg.dim, cfg.dim), nn.SiLU())

    def forward(self, x: Tensor, t: Tensor, h: Tensor, target: Target, memory: Memory) -> Tensor:
        """Vectors whose products with the embeddings are the logits.

        Args:
            x: (B, T, D) embeddings of x_t.
            t, h: the time and the size of the step to be taken, (B, 1) or (1, 1).
            target: of B targets.
            memory: as in :meth:`TargetNetwork.run`.
        Returns:
            (B, T, D) float32.
        """
        condition = self.join(torch.cat((self.time(t), self.step(h)), dim=-1))
        x = self.input(target.layout.pack(x).type_as(self.input.weight))
        return self.run(x, target, memory, condition)
