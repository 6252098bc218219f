"""Decoding by confidence: each step takes some tokens as known (t = 0) and begins anew with the others (t = 1).

Mask-predict (Ghazvininejad et al., 2019) with pure noise in the place of the mask.  It needs a network that was
trained on sentences of known and unknown tokens (:func:`fastdiss_fairseq.diffusion.training.times`).
"""

from typing import Callable, List, NamedTuple, Tuple

import torch
from torch import Tensor

from .noise import fold, gaussian
from .sampling import Sampler, evaluate


class Prediction(NamedTuple):
    """``tokens`` and their ``log_probs`` (S, C, T), each from the step that predicted it last; ``steps``
    (S,) taken; ``history``: the tokens after each step."""

    tokens: Tensor
    log_probs: Tensor
    steps: Tensor
    history: List[Tensor]


def mask_predict(
    denoise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    predict: Callable[[Tensor, Tensor], Tuple[Tensor, Tensor]],
    embed: Callable[[Tensor], Tensor],
    refine: Callable[[Tensor, Tensor], Tensor],
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
        predict: ``(estimate, rows) -> tokens, log_probs``, both (S', C, T).
        embed: tokens -> z_0.
        refine: as in :func:`sample`.
        key: (S, C) int64 noise keys.
        mask: (S, C, T), True at real positions.
        dim: D.
        sampler: of which the trained process, the temperature and the self-conditioning count.
        early_exit: stop a sentence when a step changed none of its candidates' tokens.
    """
    shape = (mask.size(2), dim)
    clean, end = torch.zeros((), device=mask.device), torch.ones((), device=mask.device)
    noise_scale = sampler.trained.sigma(end) * sampler.temperature
    rows = torch.arange(len(key), device=key.device)
    taken, history, unknown = torch.zeros_like(rows), [], torch.ones_like(mask)
    tokens, log_probs = torch.zeros_like(mask, dtype=torch.long), torch.zeros_like(mask, dtype=torch.float)
    z = gaussian(fold(key, "start"), *shape) * noise_scale
    z_bar = torch.zeros_like(z)
    for index in range(steps):
        estimate = evaluate(denoise, z, unknown.to(z.dtype), z_bar, rows, sampler, refine)
        found, found_log_probs = predict(estimate, rows)
        before, fresh = tokens[rows], torch.where(unknown, found, tokens[rows])
        tokens[rows], taken[rows] = fresh, index + 1
        log_probs[rows] = torch.where(unknown, found_log_probs, log_probs[rows])
        history.append(tokens.clone())
        keep = (fresh != before).flatten(1).any(1) if early_exit and index else torch.ones_like(rows, dtype=torch.bool)
        if index + 1 == steps or not keep.any():
            break
        rows, z_bar = rows[keep], refine(estimate, rows)[keep]
        unknown = least_confident(log_probs[rows], mask[rows], steps - index - 1, steps)
        noise = gaussian(fold(key[rows], "step", index), *shape) * noise_scale
        z = torch.where(unknown.unsqueeze(-1), noise, embed(tokens[rows]) * sampler.trained.alpha(clean))
    return Prediction(tokens, log_probs, taken, history)


def least_confident(log_probs: Tensor, mask: Tensor, numerator: int, denominator: int) -> Tensor:
    """True at that share, rounded down, of each candidate's real positions, those of lowest log-probability."""
    count = mask.sum(-1, keepdim=True) * numerator // denominator
    order = log_probs.masked_fill(~mask, float("inf")).sort(dim=-1, stable=True).indices
    return (order.argsort(dim=-1) < count) & mask
