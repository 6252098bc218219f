"""Decoding by confidence: each step takes some tokens as known (t = 0) and begins anew with the others (t = 1),
first of all with repetitions.

Mask-predict (Ghazvininejad et al., 2019) with pure noise in the place of the mask.  It needs a network that was
trained on sentences of known and unknown tokens (:class:`fastdiss_fairseq.diffusion.times.Times`).
"""

from typing import Callable, Iterator, List, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .noise import fold, gaussian
from .sampling import Read, Sampler


class Prediction(NamedTuple):
    """``tokens`` and their ``log_probs`` (S, C, T), each from the step that predicted it last; ``steps``
    (S,) taken; ``history``: what stood after each step, where it was asked for."""

    tokens: Tensor
    log_probs: Tensor
    steps: Tensor
    history: List[Read]


def mask_predict(
    denoise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    read: Callable[[Tensor, Tensor, Tensor, bool], Tuple[Tensor, Tensor, Tensor]],
    embed: Callable[[Tensor], Tensor],
    key: Tensor,
    mask: Tensor,
    dim: int,
    steps: int,
    sampler: Sampler,
    early_exit: bool = False,
    watched: bool = False,
) -> Prediction:
    """Decode S sentences with C candidates each in K evaluations of the network.

    Args:
        denoise: as in :func:`fastdiss_fairseq.diffusion.sampling.sample`, with t (S', C, T).
        read: ``(estimate, rows, where, refine) -> tokens, log_probs, refined``, (S', C, T) and (S', C, T, D), which
            count only ``where`` (S', C, T) is True: nearest tokens, and what self-conditioning gets; where ``refine``
            is False, that will not be used.
        embed: tokens -> z_0.
        key: (S, C) int64 noise keys.
        mask: (S, C, T), True at real positions.
        dim: D.
        sampler: of which the trained process, the temperature and the self-conditioning count.
        early_exit: once a step changed none of a sentence's tokens, in no candidate, it skips the next K / 20 steps
            (rounded down), and others that would look at no fewer positions.
        watched: keep a history.
    """
    shape, start, end = (mask.size(2), dim), *torch.tensor([0.0, 1.0], device=mask.device)
    noise_scale = sampler.trained.sigma(end) * sampler.temperature
    tokens, log_probs = torch.zeros_like(mask, dtype=torch.long), torch.zeros_like(mask, dtype=torch.float)
    unknown, z_bar, history = mask.clone(), torch.zeros(*mask.shape, dim, device=mask.device), []
    rows = torch.arange(len(key), device=key.device)
    taken, latest, settled = torch.zeros_like(rows), torch.zeros_like(rows), rows < 0

    for index, noise in enumerate(noise_of_steps(key, steps, *shape)):
        if index:
            confidence = log_probs.masked_fill(repeated(tokens, log_probs), -float("inf"))
            doubtful = least_confident(confidence, mask, steps - index, steps)
            if early_exit:
                rested = index - latest > steps // PAUSE
                rows = worth_a_step(doubtful, unknown, settled, rested).nonzero().squeeze(1)
            unknown[rows] = doubtful[rows]
        if len(rows):
            before, look_at = tokens[rows], unknown[rows]
            known = embed(before)
            z = torch.where(look_at.unsqueeze(-1), noise[rows] * noise_scale, known * sampler.trained.alpha(start))

            def look(condition, refine):
                estimate = denoise(z, look_at.to(z.dtype), condition, rows)
                found, found_log_probs, refined = read(estimate, rows, look_at, refine)
                return found, found_log_probs, torch.where(look_at.unsqueeze(-1), refined, known)

            reuse = sampler.self_conditioning == "previous"
            condition = z_bar[rows] if reuse else torch.zeros_like(z)
            if sampler.self_conditioning == "recompute":
                condition = look(condition, refine=True)[2]
            found, found_log_probs, z_bar[rows] = look(condition, refine=reuse and index + 1 < steps)
            tokens[rows] = torch.where(look_at, found, before)
            log_probs[rows] = torch.where(look_at, found_log_probs, log_probs[rows])
            settled[rows] = (tokens[rows] == before).flatten(1).all(1)
            taken[rows] += 1
            latest[rows] = index
        if watched:
            history.append(Read(tokens.clone(), log_probs.clone(), rows))
    return Prediction(tokens, log_probs, taken, history)


#: Early exit skips this part of the K steps after one that changed nothing.
PAUSE = 20

#: Numbers of noise that are drawn at a time: of several steps where they are few, since drawing a few takes as long
#: as drawing some thousands.
DRAWN_AT_ONCE = 2**18


def noise_of_steps(key: Tensor, steps: int, length: int, dim: int) -> Iterator[Tensor]:
    """Standard normal noise (S, C, T, D) of each step, for keys (S, C)."""
    later = torch.arange(steps - 1, device=key.device).view(-1, *[1] * key.dim())
    keys = torch.cat((fold(key, "start").unsqueeze(0), fold(fold(key, "step"), later)))
    for some in keys.split(max(1, DRAWN_AT_ONCE // (key.numel() * length * dim))):
        yield from gaussian(some, length, dim)


def worth_a_step(doubtful: Tensor, unknown: Tensor, settled: Tensor, rested: Tensor) -> Tensor:
    """(S,) True where ``doubtful`` positions (S, C, T) remain.  Where the last step changed no token (``settled``),
    they must be fewer than its ``unknown`` ones, and the sentence have ``rested`` since (S,)."""
    fewer = (doubtful.sum(-1) < unknown.sum(-1)).any(1)
    return doubtful.flatten(1).any(1) & (~settled | (fewer & rested))


def repeated(tokens: Tensor, log_probs: Tensor) -> Tensor:
    """True at the less certain of two equal neighbours (the later one where they are level): positions predicted in
    parallel say the same word twice for want of knowing of each other, and are worth a second look."""
    same = tokens[..., 1:] == tokens[..., :-1]
    later = same & (log_probs[..., 1:] <= log_probs[..., :-1])
    return pad(later, (1, 0)) | pad(same & ~later, (0, 1))


def least_confident(log_probs: Tensor, mask: Tensor, numerator: int, denominator: int) -> Tensor:
    """True at that share, rounded down, of each candidate's real positions, those of lowest log-probability."""
    count = mask.sum(-1, keepdim=True) * numerator // denominator
    order = log_probs.masked_fill(~mask, float("inf")).sort(dim=-1, stable=True).indices
    return (order.argsort(dim=-1) < count) & mask
