"""One training step as mathematics: which inputs the network is trained on."""

from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor

from .noise import fold, gaussian, uniform
from .noise_scaling import token_times
from .perturbation import Perturbation
from .process import Process
from .times import MIXED, Times


class Rows(NamedTuple):
    """Numbers of the sentences that passes without gradient run on: ``conditioned`` (n,) are given an estimate,
    ``looked_at`` (m,) by MANS: those of one time, since what is known, or unknown, stays so."""

    conditioned: Tensor
    looked_at: Tensor


@dataclass(frozen=True)
class TrainingPlan:
    """What a training step does with a batch; made by the criterion, carried out by the model.

    Attributes:
        key: (B,) int64, the source of every random number of the step.
        self_conditioning: probability that a sentence is given an estimate.
        scp: how SCP perturbs the estimate's input; None: the estimate is made at t itself.
        beta: MANS' scale; 1: MANS is off.
        rounding: ``anchor`` (softmax at the estimate) or ``exact`` (softmax at z_0).
        label_smoothing: of the rounding loss.
        mixed_times: probability that a sentence's tokens are either known (t = 0) or unknown (t = 1).
        estimate: what self-conditioning gets, ``direct`` or ``expected``, as in decoding.
    """

    key: Tensor
    self_conditioning: float = 0.5
    scp: Optional[Perturbation] = None
    beta: float = 1.0
    rounding: str = "anchor"
    label_smoothing: float = 0.0
    mixed_times: float = 0.75
    estimate: str = "expected"

    def rows(self) -> Rows:
        """Which sentences take part in what; on a GPU the host waits for it."""
        conditioned, mixed = uniform(fold(self.key, ("self-conditioning", MIXED)))
        looked_at = (mixed >= self.mixed_times).nonzero().squeeze(1) if self.beta > 1 else self.key[:0]
        return Rows((conditioned < self.self_conditioning).nonzero().squeeze(1), looked_at)


class TrainingPass(NamedTuple):
    """``estimate`` (B, T, D) with gradient; t and ``token_t`` (B, 1) or (B, T);
    ``moved`` (B, T) or None; ``gap`` () summed t' - t of the sentences with an estimate."""

    estimate: Tensor
    t: Tensor
    token_t: Tensor
    moved: Optional[Tensor]
    gap: Tensor


def training_pass(
    denoise: Callable[..., Tensor],
    is_correct: Callable[[Tensor], Tensor],
    z_0: Tensor,
    mask: Tensor,
    rows: Rows,
    plan: TrainingPlan,
    process: Process,
    refine: Callable[[Tensor], Tensor] = lambda estimate: estimate,
) -> TrainingPass:
    """Diffuse, let MANS choose t_i, SCP make the estimate, and run the pass with gradient.

    Args:
        denoise: ``(z, t, z_bar, rows) -> estimate`` for the sentences of these numbers (all when None).
        is_correct: estimates (m, T, D) of the sentences that MANS looks at -> (m, T), True where they round to the
            target token.
        z_0: (B, T, D) target embeddings, float32.
        mask: (B, T), True at real tokens.
        rows: :meth:`TrainingPlan.rows`.
        refine: what self-conditioning gets for the estimates (n, T, D) of the conditioned sentences.
    """
    times = Times.draw(plan.key, z_0.size(1), plan.mixed_times)
    t = times.tokens
    noise = gaussian(fold(plan.key, "noise"), *z_0.shape[1:])
    z_t, token_t, moved = process.diffuse(z_0, t, noise), t, None
    if len(rows.looked_at) > 0:
        with torch.no_grad():
            seen = z_t[rows.looked_at]
            looked = denoise(seen, t[rows.looked_at], torch.zeros_like(seen), rows.looked_at)
            moved = torch.zeros_like(mask).index_copy(0, rows.looked_at, is_correct(looked))
            token_t = token_times(t, moved, plan.beta)
            times = times._replace(tokens=token_t)
        z_t = process.diffuse(z_0, token_t, noise)
    with torch.no_grad():
        z_bar, later = _self_condition(denoise, z_0, z_t, times, rows.conditioned, plan, process, refine)
        gap = ((later - token_t) * mask).sum(1) / mask.sum(1)
    estimate = denoise(z_t, token_t, z_bar, None)
    return TrainingPass(estimate, t, token_t, moved, gap.sum())


def _self_condition(denoise, z_0, z_t, times, rows, plan, process, refine):
    """z_bar (B, T, D), zero for sentences without an estimate, and the times t' they were made at.

    MANS' own look is not used again: it saw less noise, and was right wherever a token was moved, so it would tell the
    network the answer there, as no step of decoding does.
    """
    t = later = times.tokens
    z_bar = torch.zeros_like(z_t)
    if len(rows) == 0:
        return z_bar, later
    if plan.scp is not None:
        estimate, made_at = plan.scp.estimate(
            lambda z, s, c: denoise(z, s, c, rows),
            z_0[rows],
            z_t[rows],
            times.select(rows),
            plan.key[rows],
            process,
            refine,
        )
        later = t.index_copy(0, rows, made_at)
    else:
        estimate = denoise(z_t[rows], t[rows], z_bar[rows], rows)
    return z_bar.index_copy(0, rows, refine(estimate).to(z_bar.dtype)), later
