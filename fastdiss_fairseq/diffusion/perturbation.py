"""SCP, self-conditioning perturbation: estimates for self-conditioning from noisier inputs.

A rule says how far the estimate's time t' lies behind t; a coupling says how z_{t'} is drawn.
A rule is one function ``(t, key, hop, scp, process) -> t'`` and one entry in :data:`RULES`.

The paper writes z'_t = alpha_t lambda_t z_0 + sigma_t sqrt(1 + gamma_t^2) eps.  Up to its scale that
is a sample of the forward process at the t' with SNR(t') = SNR(t) lambda_t^2 / (1 + gamma_t^2), and
choosing t' fixes both: lambda_t = alpha_{t'} / alpha_t, 1 + gamma_t^2 = sigma_{t'}^2 / sigma_t^2 (method, section 3).
"""

import math
from math import inf
from dataclasses import dataclass
from typing import Callable, Dict, Tuple

import torch
from torch import Tensor

from .noise import fold, gaussian, uniform
from .process import Process
from .times import Times

#: ``denoise(z, t, z_bar) -> z_0 estimate``, all (B, T, D) with t (B, 1) or (B, T).
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Perturbation:
    """The options of SCP (method, section 3).

    Attributes:
        rule: ``budget``, ``uniform`` or ``gamma``.
        coupling: ``forward`` (noise z_t further) or ``fresh`` (new noise on z_0).
        hops: 1, or 2 where the estimate at t' is itself conditioned on one from t'' > t'.
        budgets: the step counts K that ``budget`` draws from.
        gamma, shrink: the constants gamma and lambda of ``gamma``.

    Raises:
        ValueError: an option out of its range.
    """

    rule: str = "budget"
    coupling: str = "forward"
    hops: int = 1
    budgets: Tuple[int, ...] = (2, 3, 5, 10, 20)
    gamma: float = 1.0
    shrink: float = 1.0

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"unknown SCP rule '{self.rule}' (known: {', '.join(RULES)})")
        if self.coupling not in COUPLINGS:
            known = ", ".join(COUPLINGS)
            raise ValueError(f"unknown SCP coupling '{self.coupling}' (known: {known})")
        if self.hops not in (1, 2):
            raise ValueError(f"SCP hops must be 1 or 2, not {self.hops}")
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError(f"SCP budgets must be step counts >= 1, not {self.budgets}")
        if not 0 <= self.gamma < inf or not 0 < self.shrink <= 1:
            raise ValueError("SCP needs gamma >= 0 and 0 < lambda <= 1")

    def later_time(self, t: Tensor, key: Tensor, process: Process, hop: int = 1) -> Tensor:
        """t' >= t, the shape of t ((B, 1) or (B, T)); ``key`` (B,), the same for both hops."""
        return torch.max(RULES[self.rule](t, key, hop, self, process), t)

    def perturb(self, z_0, z_t, t, later, key, process) -> Tensor:
        """A sample of the process at ``later``: (B, T, D)."""
        noise = gaussian(fold(key, "scp-noise"), *z_t.shape[1:])
        return COUPLINGS[self.coupling](z_0, z_t, t, later, noise, process)

    def estimate(
        self,
        denoise: Denoise,
        z_0: Tensor,
        z_t: Tensor,
        times: Times,
        key: Tensor,
        process: Process,
        refine: Callable[[Tensor], Tensor] = lambda estimate: estimate,
    ) -> Tuple[Tensor, Tensor]:
        """The self-conditioning estimate for z_t, as decoding with few steps would have it.

        Args:
            refine: what self-conditioning gets of an estimate; applied between two hops, not to the result.
        Returns:
            the estimate (B, T, D), and t' (the shape of ``times.tokens``).
        """
        later, z_later = self._noisier(1, z_0, z_t, times, key, process)
        condition = torch.zeros_like(z_t)
        if self.hops == 2:
            latest, z_latest = self._noisier(2, z_0, z_later, later, key, process)
            condition = refine(denoise(z_latest, latest.tokens, condition)).to(z_t.dtype)
        return denoise(z_later, later.tokens, condition), later.tokens

    def _noisier(self, hop: int, z_0, z_t, times: Times, key, process) -> Tuple[Times, Tensor]:
        """Later times and a sample there."""
        key = fold(key, "scp")
        later = times.later(lambda t: self.later_time(t, key, process, hop))
        return later, self.perturb(z_0, z_t, times.tokens, later.tokens, fold(key, hop), process)


def _budget(t: Tensor, key: Tensor, hop: int, scp: Perturbation, process: Process) -> Tensor:
    """One step of a K-step grid further, K drawn for each sentence, one for both hops: a rehearsal of decoding."""
    choice = (uniform(fold(key, "budget")) * len(scp.budgets)).long().clamp(max=len(scp.budgets) - 1)
    steps = torch.zeros_like(t[:, 0])
    for i, budget in enumerate(scp.budgets):
        steps = steps.masked_fill(choice == i, budget)
    return (t + 1 / steps.unsqueeze(1)).clamp(max=1)


def _uniform(t: Tensor, key: Tensor, hop: int, scp: Perturbation, process: Process) -> Tensor:
    """t' ~ U(t, 1)."""
    return t + (1 - t) * uniform(fold(key, "uniform", hop)).to(t.dtype).unsqueeze(1)


def _gamma(t: Tensor, key: Tensor, hop: int, scp: Perturbation, process: Process) -> Tensor:
    """The paper's formula with constant gamma and lambda."""
    drop = 2 * math.log(scp.shrink) - math.log1p(scp.gamma**2)
    return process.time(process.log_snr(t) + drop)


def _forward(z_0, z_t, t, later, noise, process) -> Tensor:
    return process.diffuse_further(z_t, t, later, noise)


def _fresh(z_0, z_t, t, later, noise, process) -> Tensor:
    return process.diffuse(z_0, later, noise)


RULES: Dict[str, Callable] = {"budget": _budget, "uniform": _uniform, "gamma": _gamma}
COUPLINGS: Dict[str, Callable] = {"forward": _forward, "fresh": _fresh}
