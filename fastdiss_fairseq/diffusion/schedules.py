"""Noise schedules: the signal share alpha_bar(t) = alpha(t)^2 for t in [0, 1], and its inverse.

A schedule is a pair of functions on float64 tensors and one entry in :data:`SCHEDULES`.  They are
plain functions, not buffers, so that half-precision training cannot round them.
"""

import math
from typing import Callable, Dict, NamedTuple

import torch
from torch import Tensor

#: alpha_bar is squeezed into [EPSILON, 1 - EPSILON], so that the log-SNR is finite at both ends.
EPSILON = 1e-5

_SQRT_OFFSET = 1e-4
_COSINE_OFFSET = 0.008
_BETA_MIN, _BETA_MAX = 0.1, 20.0


class Schedule(NamedTuple):
    """``alpha_bar``: strictly decreasing from (almost) 1 to (almost) 0 on [0, 1]; ``time``: inverse."""

    alpha_bar: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]


def _sqrt(t: Tensor) -> Tensor:
    """1 - sqrt(t + s), with s fading out towards t = 1 (Diffusion-LM, Li et al., 2022)."""
    return 1 - (t + _SQRT_OFFSET * (1 - t)).sqrt()


def _sqrt_time(alpha_bar: Tensor) -> Tensor:
    return ((1 - alpha_bar) ** 2 - _SQRT_OFFSET) / (1 - _SQRT_OFFSET)


def _cosine(t: Tensor) -> Tensor:
    """Squared cosine (Nichol and Dhariwal, 2021), normalised to 1 at t = 0."""
    angle = (t + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2
    return torch.cos(angle) ** 2 / _COSINE_START**2


def _cosine_time(alpha_bar: Tensor) -> Tensor:
    angle = torch.acos((alpha_bar.sqrt() * _COSINE_START).clamp(0, 1))
    return angle * 2 / math.pi * (1 + _COSINE_OFFSET) - _COSINE_OFFSET


_COSINE_START = math.cos(_COSINE_OFFSET / (1 + _COSINE_OFFSET) * math.pi / 2)


def _linear(t: Tensor) -> Tensor:
    """exp of minus the integral of a linear beta(t) (Ho et al., 2020; Song et al., 2021)."""
    return torch.exp(-(_BETA_MIN * t + (_BETA_MAX - _BETA_MIN) * t**2 / 2))


def _linear_time(alpha_bar: Tensor) -> Tensor:
    slope = _BETA_MAX - _BETA_MIN
    return ((_BETA_MIN**2 - 2 * slope * alpha_bar.log()).sqrt() - _BETA_MIN) / slope


SCHEDULES: Dict[str, Schedule] = {
    "sqrt": Schedule(_sqrt, _sqrt_time),
    "cosine": Schedule(_cosine, _cosine_time),
    "linear": Schedule(_linear, _linear_time),
}


def alpha_bar(schedule: str, t: Tensor) -> Tensor:
    """Signal share in [EPSILON, 1 - EPSILON], float64, the shape of ``t`` (in [0, 1])."""
    raw = SCHEDULES[schedule].alpha_bar(t.double().clamp(0, 1))
    return EPSILON + (1 - 2 * EPSILON) * raw


def time_of_alpha_bar(schedule: str, value: Tensor) -> Tensor:
    """The t in [0, 1] at which :func:`alpha_bar` is ``value``; float64, clipped to the ends."""
    raw = (value.double() - EPSILON) / (1 - 2 * EPSILON)
    return SCHEDULES[schedule].time(raw.clamp(EPSILON**2, 1)).clamp(0, 1)
