"""Solvers: one step of the reverse process, from t to an earlier s, given the estimate of z_0.

A solver is one function ``(step) -> z_s`` on a :class:`Step` and one entry in :data:`SOLVERS`.
All are written for a general pair (alpha, sigma), so the noise factor needs no special case.
"""

from typing import Callable, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .process import Process


class Step(NamedTuple):
    """``z`` at time ``t`` and the network's ``estimate`` of z_0 there, both (..., D); the next time
    ``s`` < t; t and s are float64 scalars; ``noise()`` draws standard normal noise like z;
    ``previous`` is the last step's (estimate, t), None in the first."""

    z: Tensor
    estimate: Tensor
    t: Tensor
    s: Tensor
    process: Process
    noise: Callable[[], Tensor]
    previous: Optional[Tuple[Tensor, Tensor]] = None

    def coefficients(self):
        """alpha_t, sigma_t, alpha_s, sigma_s as float64 scalars."""
        p = self.process
        return (*p.scales(self.t), *p.scales(self.s))


def ddim(step: Step) -> Tensor:
    """Deterministic step along the probability flow (Song et al., 2020, eq. 12 with eta = 0)."""
    alpha_t, sigma_t, alpha_s, sigma_s = step.coefficients()
    ratio = sigma_s / sigma_t
    return _combine(ratio, step.z, alpha_s - ratio * alpha_t, step.estimate)


def ddpm(step: Step) -> Tensor:
    """Ancestral sampling from the posterior q(z_s | z_t, z_0) (Ho et al., 2020, eq. 6 and 7)."""
    alpha_t, sigma_t, alpha_s, sigma_s = step.coefficients()
    shrink = alpha_t / alpha_s
    between = (sigma_t**2 - (shrink * sigma_s) ** 2).clamp(min=0)
    mean = _combine(shrink * sigma_s**2 / sigma_t**2, step.z, alpha_s * between / sigma_t**2, step.estimate)
    return mean + _like(sigma_s * between.sqrt() / sigma_t, step.z) * step.noise()


def dpmpp_2m(step: Step) -> Tensor:
    """DPM-Solver++(2M): second order multistep on the estimates (Lu et al., 2022, algorithm 2)."""
    alpha_t, sigma_t, alpha_s, sigma_s = step.coefficients()
    half_log_snr = lambda t: step.process.log_snr(t) / 2
    size = half_log_snr(step.s) - half_log_snr(step.t)
    estimate = step.estimate
    if step.previous is not None:
        before, r = step.previous
        weight = _like(size / (half_log_snr(step.t) - half_log_snr(r)) / 2, step.z)
        estimate = estimate + weight * (estimate - before)
    return _combine(sigma_s / sigma_t, step.z, -alpha_s * torch.expm1(-size), estimate)


def renoise(step: Step) -> Tensor:
    """Forget z_t: z_s = alpha_s z_0 + sigma_s eps with fresh noise around the estimate."""
    _, _, alpha_s, sigma_s = step.coefficients()
    return _combine(alpha_s, step.estimate, sigma_s, step.noise())


def _like(coefficient: Tensor, z: Tensor) -> Tensor:
    return coefficient.to(z.dtype)


def _combine(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return _like(a, x) * x + _like(b, y) * y


SOLVERS: Dict[str, Callable[[Step], Tensor]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
    "renoise": renoise,
}
