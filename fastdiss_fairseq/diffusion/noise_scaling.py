"""MANS, model-aware noise scaling: more noise for tokens that the model already gets right."""

from bisect import bisect_right
from math import inf
from typing import Sequence, Tuple

import torch
from torch import Tensor


def token_times(t: Tensor, correct: Tensor, beta: float) -> Tensor:
    """t_i = min(beta t, 1) where the token is already right, t elsewhere (method, section 4).

    Args:
        t: (B, 1) or (B, T) times in [0, 1].
        correct: (B, T) True where the nearest token to the estimate is the target; False at padding.
        beta: scale >= 1.
    Returns:
        (B, T) times in [0, 1].
    """
    return torch.where(correct, (beta * t).clamp(max=1), t.expand_as(correct))


def is_fraction(phase: float) -> bool:
    """Whether a phase, or the start, is a fraction of all updates rather than an update."""
    return phase != 0 and phase <= 1


class PhaseTable:
    """beta(n): the scale at update n, constant in each phase and 1 before the start.

    Args:
        scales: one beta >= 1 a phase.
        phases: the updates at which the second and later phases begin: strictly increasing.
        start: the update at which the first phase begins.
        max_update: where given, phases and start not above 1 are fractions of it.

    Raises:
        ValueError: lengths that do not fit, phases out of order, beta < 1, or fractions without
            ``max_update``.
    """

    def __init__(self, scales: Sequence[float], phases: Sequence[float], start: float = 0, max_update: int = 0):
        if len(scales) != len(phases) + 1:
            raise ValueError(f"{len(scales)} MANS scales need {len(scales) - 1} phase boundaries, not {len(phases)}")
        wrong = [scale for scale in scales if not 1 <= scale < inf]
        if wrong:
            raise ValueError(f"MANS scales must be numbers of at least 1, not {wrong[0]}")
        self.scales: Tuple[float, ...] = (1.0, *map(float, scales))
        self.starts = [self._update(value, max_update) for value in (start, *phases)]
        if any(b <= a for a, b in zip(self.starts, self.starts[1:])) or self.starts[0] < 0:
            raise ValueError(f"MANS phases must increase, from the start on: {self.starts}")

    @staticmethod
    def _update(value: float, max_update: int) -> float:
        if not is_fraction(value):
            return value
        if max_update <= 0:
            raise ValueError(
                f"a MANS phase of {value:g} is a fraction of --max-update: give --max-update, "
                "or phases in updates (--mans-start 0 --mans-phase 100000,200000)"
            )
        return value * max_update

    def __str__(self) -> str:
        return ", ".join(
            f"beta {scale:g} from update {start:g} on" for scale, start in zip(self.scales[1:], self.starts)
        )

    def __call__(self, update: int) -> float:
        """beta at ``update`` (0 is the first)."""
        return self.scales[bisect_right(self.starts, update)]
