"""The denoiser D(z_t, t, z_bar, x): an estimate of z_0."""

import torch
from torch import Tensor

from .embedding import Positions
from .target import Memory, Target, TargetNetwork
from .transformer import LayerConfig, Layout


class Denoiser(TargetNetwork):
    """A bidirectional transformer on z_t and the self-conditioning estimate; arguments as in
    :class:`TargetNetwork`."""

    def __init__(self, cfg: LayerConfig, layers: int, latent_dim: int, positions: Positions):
        super().__init__(cfg, layers, 2 * latent_dim, latent_dim, positions)

    def forward(self, z: Tensor, t: Tensor, z_bar: Tensor, target: Target, memory: Memory) -> Tensor:
        """Estimate z_0.

        Args:
            z: (B, T, D), scaled by :meth:`Process.input_scale`.
            t: times in [0, 1], (B, 1), (B, T) or (1, 1).
            z_bar: (B, T, D) self-conditioning estimate, zero where there is none.
            target: of B targets.
            memory: as in :meth:`TargetNetwork.run`.
        Returns:
            (B, T, D) float32.
        """
        layout = target.layout
        x = self.input(layout.pack(torch.cat((z, z_bar), dim=-1)).type_as(self.input.weight))
        return self.run(x + self._time(t, layout), target, memory)

    def _time(self, t: Tensor, layout: Layout) -> Tensor:
        if t.size(1) == 1:
            return layout.spread(self.time(t))
        return self.time(layout.pack(t.unsqueeze(-1)).squeeze(-1))
