"""Times and step sizes in training."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion.noise import fold, uniform

#: The step sizes are 2^0, 2^-1, ..., 2^-RUNGS.
RUNGS = 10
#: What the network is told where it follows the flow itself; training without step sizes knows no other.
SMALLEST = 2.0**-RUNGS


class Steps(NamedTuple):
    """A time t and the step h to be taken there, for each sentence (B, 1) float32; t + h <= 1."""

    t: Tensor
    h: Tensor

    @property
    def large(self) -> Tensor:
        """(B,) True where the step is not the smallest."""
        return self.h.squeeze(1) > SMALLEST


def draw_steps(key: Tensor, step_aware: bool, tilt: float) -> Steps:
    """t ~ U(0, 1 - h), and h = 2^-k with probability proportional to 2^(tilt k), k = 0, ..., RUNGS; not step-aware:
    h is the smallest.  ``key``: (B,)."""
    k = torch.full_like(key, RUNGS)
    if step_aware:
        weights = 2.0 ** (tilt * torch.arange(RUNGS + 1, dtype=torch.float64, device=key.device))
        bounds = (weights.cumsum(0) / weights.sum())[:-1]
        k = torch.searchsorted(bounds, uniform(fold(key, "rung")).double())
    h = 2.0 ** -k.float()
    t = uniform(fold(key, "time")) * (1 - h)
    return Steps(t.unsqueeze(1), h.unsqueeze(1))
