"""The decoding loop: K evaluations of the network on the grid t = 0, 1/K, ..., 1 - 1/K."""

from dataclasses import dataclass
from math import inf
from typing import Callable, List, NamedTuple, Tuple

import torch
from torch import Tensor

from ..diffusion.noise import fold, uniform
from .jumps import JUMPS, draw, jump, log_probability, settle
from .path import Path

#: The solver that is exact where the prediction does not change.
CUMULATIVE = "cumulative"
LIKELIEST = "likeliest"
LAST_STEPS = (LIKELIEST, "drawn")


@dataclass(frozen=True)
class FlowSampler:
    """How x_1 is reached in K steps.

    Attributes:
        path: the path the network was trained on.
        solver: a key of :data:`JUMPS`.
        temperature: predictions are p^(1 / temperature), normalised; 0: the likeliest token has all.
        last: the tokens of the last step are ``drawn`` from the prediction, or the ``likeliest``.

    Raises:
        ValueError: an unknown name, or a negative temperature.
    """

    path: Path
    solver: str = CUMULATIVE
    temperature: float = 0.0  # as ``last`` chosen on validation (docs/fsdfm.md)
    last: str = LIKELIEST

    def __post_init__(self):
        if self.solver not in JUMPS:
            raise ValueError(f"unknown solver '{self.solver}' (known: {', '.join(JUMPS)})")
        if self.last not in LAST_STEPS:
            raise ValueError(f"unknown last step '{self.last}' (known: {', '.join(LAST_STEPS)})")
        if not 0 <= self.temperature < inf:
            raise ValueError(f"the decoding temperature must be a number of at least 0, not {self.temperature:g}")

    @property
    def has_fixed_sizes(self) -> bool:
        """Whether what a step computes is no matter of what the last one found: drawn words are drawn where tokens
        leave alone."""
        return self.temperature == 0

    def tempered(self, logits: Tensor) -> Tensor:
        """Logits (N, V) at the temperature."""
        if self.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return torch.full_like(logits, -float("inf")).scatter(1, best, 0.0)
        return logits if self.temperature == 1 else logits / self.temperature

    def move(self, logits: Tensor, x: Tensor, u_leave: Tensor, u_word: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """A step that is not the last: x_{t+h} from x_t = x, all (N,)."""
        if self.temperature == 0:
            return settle(logits, x, u_leave, t, h, self.solver)
        return jump(self.tempered(logits), x, u_leave, u_word, t, h, self.solver)

    def finish(self, logits: Tensor, u: Tensor):
        """The last step: tokens (N,) and their log-probabilities under the prediction."""
        if self.last == LIKELIEST:
            tokens = logits.argmax(-1)
        else:
            tokens = draw(self.tempered(logits).softmax(-1), u)
        return tokens, log_probability(logits, tokens)


class FlowSample(NamedTuple):
    """``tokens`` and ``log_probs`` (N,) under the last prediction; ``history``: both after each step, where it was
    asked for."""

    tokens: Tensor
    log_probs: Tensor
    history: List[Tuple[Tensor, ...]]


def sample(
    look: Callable[[Tensor, Tensor], Tensor],
    on_logits: Callable[..., Tuple[Tensor, ...]],
    key: Tensor,
    steps: int,
    sampler: FlowSampler,
    watched: bool = False,
) -> FlowSample:
    """Decode N positions, which may belong to many sentences; what is no word is not among them.

    Args:
        look: ``(x, t) -> prediction``, one network evaluation; x (N,), t a float64 scalar.
        on_logits: ``(function, prediction, *others) -> function(logits, *others)``, with logits (N, V) of the
            prediction, and others (N,); functions return tuples of
            tensors (N,).
        key: (N,) int64 noise keys.
        steps: K >= 1.
        watched: keep a history.
    """
    x, history = sampler.path.noise(key), []
    h = torch.tensor(1 / steps, dtype=torch.float64)
    for index in range(steps - 1):
        t = h * index
        own = fold(key, "step", index)

        def move(logits, x, u_leave, u_word):
            moved = sampler.move(logits, x, u_leave, u_word, t, h)
            return (moved, log_probability(logits, moved)) if watched else (moved,)

        x, *log_probs = on_logits(move, look(x, t), x, uniform(fold(own, "leave")), uniform(fold(own, "word")))
        history += [(x, *log_probs)] if watched else []
    last = on_logits(sampler.finish, look(x, 1 - h), uniform(fold(key, "last")))
    return FlowSample(last[0], last[1], [*history, last] if watched else [])
