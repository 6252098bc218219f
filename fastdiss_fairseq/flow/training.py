"""One training step as mathematics: what the network is shown."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion.noise import fold
from .ladder import Steps, draw_steps
from .path import Path


@dataclass(frozen=True)
class FlowPlan:
    """What a training step does with a batch; made by the criterion, carried out by the model.

    Attributes:
        key: (B,) int64, the source of every random number of the step.
        step_aware: steps of all sizes, the larger ones from a teacher; otherwise the flow alone.
        tilt: P(h = 2^-k) is proportional to 2^(tilt k).
        teacher: a key of :data:`fastdiss_fairseq.flow.teacher.TEACHERS`.
        temperature: of the words that the teacher jumps to; 0: its likeliest.
    """

    key: Tensor
    step_aware: bool = False
    tilt: float = 1.0
    teacher: str = "rk4"
    temperature: float = 0.0


class Corrupted(NamedTuple):
    """``x_t`` (B, T) and the ``steps`` to be taken there; ``keys`` (B, T), one for each position."""

    x_t: Tensor
    steps: Steps
    keys: Tensor


def corrupt(plan: FlowPlan, x_1: Tensor, movable: Tensor, path: Path) -> Corrupted:
    """x_t of targets x_1 (B, T) at random times; only ``movable`` positions (B, T) are ever noise."""
    positions = torch.arange(x_1.size(1), device=x_1.device)
    keys = fold(plan.key.unsqueeze(1), "position", positions)
    steps = draw_steps(plan.key, plan.step_aware, plan.tilt)
    return Corrupted(torch.where(movable, path.corrupt(x_1, steps.t, keys), x_1), steps, keys)
