"""What a step of size h is to predict: evaluations at h / 2 along the path, combined (method, section 7).

A combination is one function ``(look, jump, x, t, h) -> prediction`` and one entry in :data:`TEACHERS`, with

- look: ``(x, t, h) -> prediction``, tensors that may be added (logits, or anything linear in them);
- jump: ``(prediction, x, t, h, number) -> x at t + h``; ``number`` tells the draws apart.
"""

from typing import Callable, Dict

from torch import Tensor


def rk4(look: Callable, jump: Callable, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """Four evaluations with the weights of Runge and Kutta."""
    half = h / 2
    middle = t + half
    k1 = look(x, t, half)
    x = jump(k1, x, t, half, 0)
    k2 = look(x, middle, half)
    x = jump(k2, x, middle, half, 1)
    k3 = look(x, middle, half)
    x = jump(k3, x, middle, half, 2)
    k4 = look(x, t + h, half)
    return (k1 + 2 * k2 + 2 * k3 + k4) / 6


def heun(look: Callable, jump: Callable, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """The mean of two evaluations: at t, and half a step on."""
    half = h / 2
    k1 = look(x, t, half)
    k2 = look(jump(k1, x, t, half, 0), t + half, half)
    return (k1 + k2) / 2


TEACHERS: Dict[str, Callable[..., Tensor]] = {"rk4": rk4, "heun": heun}
