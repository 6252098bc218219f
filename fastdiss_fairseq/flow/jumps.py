"""Jumps: how tokens move from t to t + h, given the prediction p(x_1 | x_t).

All functions work on N independent positions; logits are (N, V), ids, times and uniform numbers (N,) or broadcast.
A rule for the probability to jump is one function and one entry in :data:`JUMPS`.
"""

from typing import Callable, Dict

import torch
from torch import Tensor

from .path import kappa, kappa_rate


def cumulative(here: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """Probability to leave a token that the prediction gives the probability ``here``: 1 - exp(-h alpha (1 - here)),
    with alpha(t, h) = ln((1 - kappa_t) / (1 - kappa_{t+h})) / h, the mean of kappa' / (1 - kappa) over the step; exact
    where the prediction does not change during the step."""
    remains = ((1 - kappa(t + h)) / (1 - kappa(t))).clamp(min=0)  # exp(-h alpha), 0 where the step ends at the data
    return 1 - remains.to(here.dtype) ** (1 - here)


def euler(here: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """The same to first order in h: the rate at t, times h."""
    rate = h * kappa_rate(t) / (1 - kappa(t))
    return (rate.to(here.dtype) * (1 - here)).clamp(max=1)


JUMPS: Dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"cumulative": cumulative, "euler": euler}


def log_probability(logits: Tensor, ids: Tensor) -> Tensor:
    """log p of one id at each position, (N,)."""
    return logits.log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)


def draw(weights: Tensor, u: Tensor) -> Tensor:
    """Ids (N,) with probability proportional to weights (N, V), by inverting the cumulative sum at u in (0, 1]."""
    total = weights.cumsum(-1)
    return torch.searchsorted(total, u.unsqueeze(-1) * total[:, -1:]).squeeze(-1)


def settle(logits: Tensor, x: Tensor, u_leave: Tensor, t: Tensor, h: Tensor, rule: str) -> Tensor:
    """:func:`jump` at temperature 0, where the likeliest token has all probability."""
    best = logits.argmax(-1)
    leaves = u_leave < JUMPS[rule]((x == best).to(logits.dtype), t, h)
    return torch.where(leaves, best, x)


def jump(
    logits: Tensor, x: Tensor, u_leave: Tensor, u_word: Tensor, t: Tensor, h: Tensor, rule: str = "cumulative"
) -> Tensor:
    """x_{t+h} from x_t = x: tokens that leave go to others y != x with probability proportional to p(y)."""
    leaves = u_leave < JUMPS[rule](log_probability(logits, x).exp(), t, h)
    z = x[leaves]
    others = logits[leaves].softmax(-1).scatter(1, z.unsqueeze(1), 0)
    return x.masked_scatter(leaves, torch.where(others.sum(-1) > 0, draw(others, u_word[leaves]), z))
