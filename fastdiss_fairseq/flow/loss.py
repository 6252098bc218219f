"""The losses of the two stages, for each of N positions."""

import torch
from torch import Tensor

from .path import kappa, kappa_rate


def generalised_kl(log_p_here: Tensor, log_p_goal: Tensor, arrived: Tensor, t: Tensor) -> Tensor:
    """Generalised KL divergence between the rates of the true and the predicted jumps (method, section 7):

    -kappa' / (1 - kappa) [p(x_t) - 1{x_t = x_1} + 1{x_t != x_1} log p(x_1)]

    Args:
        log_p_here, log_p_goal: log p(x_t) and log p(x_1) under the prediction.
        arrived: True where x_t = x_1.
        t: times below 1.
    Returns:
        (N,), at least 0 up to the entropy of the data.
    """
    weight = kappa_rate(t) / (1 - kappa(t))
    gain = torch.where(arrived, torch.full_like(log_p_goal, -1.0), log_p_goal)
    return -weight * (log_p_here.exp() + gain)


def teacher_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of logits (N, V); ids that both exclude (-inf) count nothing."""
    wanted, found = teacher.log_softmax(-1), student.log_softmax(-1)
    possible = wanted > -float("inf")
    difference = torch.where(possible, wanted, torch.zeros_like(wanted)) - torch.where(
        possible, found, torch.zeros_like(found)
    )
    return (teacher.softmax(-1) * difference).sum(-1)
