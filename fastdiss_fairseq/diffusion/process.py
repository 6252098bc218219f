"""The forward process z_t = alpha(t) z_0 + F sigma(t) eps and its Gaussian identities."""

import math
from math import inf
from dataclasses import dataclass
from typing import Tuple

import torch
from torch import Tensor

from .schedules import SCHEDULES, alpha_bar, time_of_alpha_bar


@dataclass(frozen=True)
class Process:
    """Variance preserving schedule with a noise factor F (Difformer, Gao et al., 2022).

    ``alpha(t)^2 + (sigma(t) / F)^2 = 1``; F > 1 equals a log-SNR shifted down by 2 log F.
    All methods take t of any shape in [0, 1] and return a tensor of that shape and dtype.

    Raises:
        ValueError: unknown schedule, or F no positive number.
    """

    schedule: str = "sqrt"
    noise_factor: float = 1.0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise ValueError(f"unknown noise schedule '{self.schedule}' (known: {known})")
        if not 0 < self.noise_factor < inf:
            raise ValueError(f"the noise factor must be positive and finite, not {self.noise_factor}")

    def alpha(self, t: Tensor) -> Tensor:
        return self.scales(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in z_t, the factor F included."""
        return self.scales(t)[1]

    def scales(self, t: Tensor) -> Tuple[Tensor, Tensor]:
        """:meth:`alpha` and :meth:`sigma`."""
        signal = alpha_bar(self.schedule, t)
        return signal.sqrt().to(t.dtype), ((1 - signal).sqrt() * self.noise_factor).to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), strictly decreasing in t."""
        signal = alpha_bar(self.schedule, t)
        return (torch.logit(signal) - 2 * math.log(self.noise_factor)).to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`, clipped to [0, 1]."""
        signal = torch.sigmoid(log_snr.double() + 2 * math.log(self.noise_factor))
        return time_of_alpha_bar(self.schedule, signal).to(log_snr.dtype)

    def diffuse(self, z_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t from z_0 (B, T, D), t (B, 1) or (B, T) and standard normal noise (B, T, D)."""
        alpha, sigma = self.scales(t)
        return alpha.unsqueeze(-1) * z_0 + sigma.unsqueeze(-1) * noise

    def diffuse_further(self, z_t: Tensor, t: Tensor, later: Tensor, noise: Tensor) -> Tensor:
        """A sample at ``later`` >= t given z_t: the forward transition (method, section 3)."""
        (alpha, sigma), (alpha_later, sigma_later) = self.scales(t), self.scales(later)
        shrink = alpha_later / alpha
        variance = sigma_later**2 - (shrink * sigma) ** 2
        grow = variance.clamp(min=0).sqrt()
        return shrink.unsqueeze(-1) * z_t + grow.unsqueeze(-1) * noise

    def input_scale(self, t: Tensor) -> Tensor:
        """alpha / (alpha^2 + sigma^2): makes z_t the mean of z_0 given z_t alone, where z_0 has mean 0
        and variance 1.  Pure noise comes out near 0, instead of drowning what else the network is told."""
        alpha, sigma = self.scales(t)
        return alpha / (alpha**2 + sigma**2)
