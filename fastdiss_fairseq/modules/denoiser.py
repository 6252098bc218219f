"""The denoiser D(z_t, t, z_bar, x): an estimate of z_0."""

import torch
from torch import Tensor

from .embedding import Positions
from .target import Memory, Target, TargetNetwork
from .transformer import LayerConfig


class Denoiser(TargetNetwork):
    """A bidirectional transformer on z_t and the self-conditioning estimate; arguments as in
    :class:`TargetNetwork`."""

    def __init__(self, cfg: LayerConfig, layers: int, latent_dim: int, positions: Positions):
        super().__init__(cfg, layers, 2 * latent_dim, latent_dim, positions)

    def forward(self, z: Tensor, time_features: Tensor, z_bar: Tensor, target: Target, memory: Memory) -> Tensor:
        """Estimate z_0.

        Args:
            z: (B, T, D), scaled by :meth:`Process.input_scale`.
            time_features: (B, 1, d), (B, T, d) or (1, 1, d), as ``self.time`` makes them.
            z_bar: (B, T, D) self-conditioning estimate, zero where there is none.
            target: of B targets.
            memory: as in :meth:`TargetNetwork.run`.
        Returns:
            (B, T, D) float32.
        """
        layout = target.layout
        x = self.input(layout.pack(torch.cat((z, z_bar), dim=-1)).type_as(self.input.weight))
        lay_out = layout.spread if time_features.size(1) == 1 else layout.pack
        return self.run(x + lay_out(time_features), target, memory)
