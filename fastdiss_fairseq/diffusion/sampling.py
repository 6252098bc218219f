"""The one decoding loop: K evaluations of the network on a decreasing grid of times."""

from dataclasses import dataclass
from math import inf
from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .noise import fold, gaussian
from .process import Process
from .solvers import SOLVERS, Step
from .times import uniform_grid

#: The solver that gives each token a time of its own: :mod:`.mask_predict`.
MASK_PREDICT = "mask_predict"
#: The best of :data:`SOLVERS` for models that train with one time for all tokens (docs/further-results.md, "One time for all tokens").
RENOISE = "renoise"
DECODING_SOLVERS = (*SOLVERS, MASK_PREDICT)
SELF_CONDITIONING = ("previous", "recompute", "none")


@dataclass(frozen=True)
class Sampler:
    """How z_0 is estimated in K steps.

    Attributes:
        trained: the process the network was trained on.
        noise_factor: F of the noise that is really in z while decoding.
        told_noise_factor: the network is told the time at which ``trained`` has the noise-to-signal
            ratio F_told sigma(t) / alpha(t).  F_told = F of training tells it the grid time itself;
            F_told = ``noise_factor`` tells the truth; larger values tell it of more noise.
        temperature: scale of the noise that decoding starts from; 0 starts from the mean.
        solver: a key of :data:`SOLVERS`, or :data:`MASK_PREDICT`.
        self_conditioning: ``previous`` (reuse the last step's estimate), ``recompute`` (make one at
            the current time first: two evaluations a step) or ``none``.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    trained: Process
    noise_factor: float
    told_noise_factor: float
    temperature: float = 1.0
    solver: str = "ddim"
    self_conditioning: str = "previous"

    def __post_init__(self):
        solvers = (*SOLVERS, MASK_PREDICT)  # as they are now: SOLVERS may have got new ones
        if self.solver not in solvers:
            raise ValueError(f"unknown solver '{self.solver}' (known: {', '.join(solvers)})")
        if self.self_conditioning not in SELF_CONDITIONING:
            known = ", ".join(SELF_CONDITIONING)
            raise ValueError(f"unknown self-conditioning '{self.self_conditioning}' (known: {known})")
        if not (0 < self.noise_factor < inf and 0 < self.told_noise_factor < inf and 0 <= self.temperature < inf):
            raise ValueError(
                f"noise factors of decoding must be positive numbers, not {self.noise_factor:g} and (told) "
                f"{self.told_noise_factor:g}; the temperature at least 0, not {self.temperature:g}"
            )

    #: What a step computes is no matter of what the last one found.
    has_fixed_sizes = True

    @property
    def process(self) -> Process:
        """The process that decoding follows: the trained schedule with decoding's noise factor."""
        return Process(self.trained.schedule, self.noise_factor)

    @property
    def evaluations(self) -> int:
        """Network evaluations of a step."""
        return 2 if self.self_conditioning == "recompute" else 1

    def told(self, t: Tensor) -> Tuple[Tensor, Tensor]:
        """The time the network is told at grid time t, and the scale of z that goes with it.

        The scale gives the signal in z the amplitude it has at the told time in training.  Where
        training knows no such noise (pure noise, at t = 1) the network is told 1, and the scale gives
        the noise its amplitude there.  Both float64 scalars.
        """
        if self.told_noise_factor == self.trained.noise_factor:
            return t, torch.ones_like(t)
        end = torch.ones_like(t)
        log_snr = Process(self.trained.schedule, self.told_noise_factor).log_snr(t)
        if log_snr < self.trained.log_snr(end):
            return end, self.trained.sigma(end) / self.process.sigma(t)
        told = self.trained.time(log_snr)
        return told, self.trained.alpha(told) / self.process.alpha(t)


class Read(NamedTuple):
    """What stands after a step: ``tokens`` and their ``log_probs`` (S, C, T).  In a history also ``rows``, the
    sentences that took the step (None: all)."""

    tokens: Tensor
    log_probs: Tensor
    rows: Optional[Tensor] = None


class Decoded(NamedTuple):
    """Candidates: ``tokens`` and their ``log_probs`` (S, C, T); ``steps`` (S,) taken, network evaluations where a model
    made them; ``history``: what stood after each step, where it was asked for."""

    tokens: Tensor
    log_probs: Tensor
    steps: Tensor
    history: List[Read]


class Sample(NamedTuple):
    """``estimate`` (S, C, T, D): the last estimate of z_0; ``steps`` (S,): grid steps taken;
    ``history``: what was read after each step, where reading was asked for."""

    estimate: Tensor
    steps: Tensor
    history: List[Read]


def sample(
    denoise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    key: Tensor,
    shape: Tuple[int, int],
    steps: int,
    sampler: Sampler,
    read: Optional[Callable[[Tensor, Tensor], Tuple[Tensor, Tensor]]] = None,
    early_exit: bool = False,
    refine: Callable[[Tensor, Tensor], Tensor] = lambda estimate, rows: estimate,
) -> Sample:
    """Decode S sentences with C candidates each.

    Args:
        denoise: ``(z, t, z_bar, rows) -> estimate``; z (S', C, T, D) of the sentences ``rows`` (S',),
            t a float scalar.
        key: (S, C) int64 noise keys.
        shape: (T, D).
        steps: K >= 1.
        read: ``(estimate, rows) -> tokens, log_probs`` (S', C, T) each; needed for a history or early exit.
        early_exit: stop a sentence when a step changed none of its candidates' tokens.
        refine: ``(estimate, rows) -> estimate``, what the solver and self-conditioning get.
    """
    rows = torch.arange(len(key), device=key.device)
    z = gaussian(fold(key, "start"), *shape) * sampler.process.sigma(torch.ones(())) * sampler.temperature
    z_bar, result = torch.zeros_like(z), torch.zeros_like(z)
    taken = torch.zeros_like(rows)
    now: Optional[Read] = None
    history, previous = [], None
    grid = [torch.tensor(t, dtype=torch.float64) for t in uniform_grid(steps)]
    for index, (t, s) in enumerate(zip(grid, grid[1:])):
        told, scale = sampler.told(t)
        estimate = _evaluate(denoise, z * scale.to(z.dtype), told.to(z.dtype), z_bar, rows, sampler, refine)
        result[rows] = estimate
        taken.index_fill_(0, rows, index + 1)
        keep = None
        if read is not None:
            before, now = now, _update(now, rows, Read(*read(estimate, rows)))
            history.append(now._replace(rows=rows))
            if early_exit and before is not None:
                keep = (now.tokens[rows] != before.tokens[rows]).flatten(1).any(1)
        if index + 1 == steps or (keep is not None and not keep.any()):
            break
        noise = lambda: gaussian(fold(key[rows], "step", index), *shape)
        estimate = refine(estimate, rows)
        z = SOLVERS[sampler.solver](Step(z, estimate, t, s, sampler.process, noise, previous))
        if keep is not None and not keep.all():
            z, estimate, rows = z[keep], estimate[keep], rows[keep]
        z_bar, previous = estimate, (estimate, t)
    return Sample(result, taken, history)


def _evaluate(denoise, z, told, z_bar, rows, sampler: Sampler, refine) -> Tensor:
    """The network's estimate under the sampler's self-conditioning; two evaluations for ``recompute``."""
    if sampler.self_conditioning == "none":
        return denoise(z, told, torch.zeros_like(z), rows)
    if sampler.self_conditioning == "recompute":
        z_bar = refine(denoise(z, told, torch.zeros_like(z), rows), rows)
    return denoise(z, told, z_bar, rows)


def _update(before: Optional[Read], rows: Tensor, new: Read) -> Read:
    """What stands in all sentences after a step in which only ``rows`` moved."""
    if before is None:
        return new
    return Read(*(old.index_copy(0, rows, part) for old, part in zip(before[:2], new[:2])))
