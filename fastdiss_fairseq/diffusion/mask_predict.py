"""Decoding by confidence: each step takes some tokens as known (t = 0) and begins anew with the others (t = 1),
first of all with repetitions.

Mask-predict (Ghazvininejad et al., 2019) with pure noise in the place of the mask.  It needs a network that was
trained on sentences of known and unknown tokens (:class:`fastdiss_fairseq.diffusion.times.Times`).
"""

from typing import Callable, List, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .noise import fold, gaussian
from .sampling import Sampler


class Prediction(NamedTuple):
    """``tokens`` and their ``log_probs`` (S, C, T), each from the step that predicted it last; ``steps``
    (S,) taken; ``history``: the tokens after each step."""

    tokens: Tensor
    log_probs: Tensor
    steps: Tensor
    history: List[Tensor]


def mask_predict(
    denoise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    read: Callable[[Tensor, Tensor, Tensor], Tuple[Tensor, Tensor, Tensor]],
    embed: Callable[[Tensor], Tensor],
    key: Tensor,
    mask: Tensor,
    dim: int,
    steps: int,
    sampler: Sampler,
    early_exit: bool = False,
) -> Prediction:
    """Decode S sentences with C candidates each in K evaluations of the network.

    Args:
        denoise: as in :func:`fastdiss_fairseq.diffusion.sampling.sample`, with t (S', C, T).
        read: ``(estimate, rows, where) -> tokens, log_probs, refined``, (S', C, T) and (S', C, T, D), which count
            only ``where`` (S', C, T) is True: nearest tokens, and what self-conditioning gets.
        embed: tokens -> z_0.
        key: (S, C) int64 noise keys.
        mask: (S, C, T), True at real positions.
        dim: D.
        sampler: of which the trained process, the temperature and the self-conditioning count.
        early_exit: stop a sentence when a step changed none of its candidates' tokens.
    """
    shape, start, end = (mask.size(2), dim), *torch.tensor([0.0, 1.0], device=mask.device)
    noise_scale = sampler.trained.sigma(end) * sampler.temperature
    rows, unknown = torch.arange(len(key), device=key.device), mask
    taken, history = torch.zeros_like(rows), []
    tokens, log_probs = torch.zeros_like(mask, dtype=torch.long), torch.zeros_like(mask, dtype=torch.float)
    z = gaussian(fold(key, "start"), *shape) * noise_scale
    known = z_bar = torch.zeros_like(z)

    def look(z_bar):
        estimate = denoise(z, unknown.to(z.dtype), z_bar, rows)
        found, found_log_probs, refined = read(estimate, rows, unknown)
        return found, found_log_probs, torch.where(unknown.unsqueeze(-1), refined, known)

    for index in range(steps):
        if sampler.self_conditioning != "previous":
            z_bar = torch.zeros_like(z)
        if sampler.self_conditioning == "recompute":
            z_bar = look(z_bar)[2]
        found, found_log_probs, z_bar = look(z_bar)
        before = tokens[rows]
        tokens[rows] = torch.where(unknown, found, before)
        log_probs[rows] = torch.where(unknown, found_log_probs, log_probs[rows])
        taken[rows] = index + 1
        history.append(tokens.clone())
        going = (tokens[rows] != before).flatten(1).any(1) if early_exit and index else torch.ones_like(rows) > 0
        if index + 1 == steps or not going.any():
            break
        rows, z_bar = rows[going], z_bar[going]
        confidence = log_probs[rows].masked_fill(repeated(tokens[rows], log_probs[rows]), -float("inf"))
        unknown = least_confident(confidence, mask[rows], steps - index - 1, steps)
        known = embed(tokens[rows])
        noise = gaussian(fold(key[rows], "step", index), *shape) * noise_scale
        z = torch.where(unknown.unsqueeze(-1), noise, known * sampler.trained.alpha(start))
    return Prediction(tokens, log_probs, taken, history)


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
