"""Times of tokens: in training, and the grids of decoding."""

from typing import Callable, List, NamedTuple, Optional

import torch
from torch import Tensor

from .noise import fold, uniform


#: The stream of the numbers (B,) that lie below the share of mixed sentences where a sentence is mixed.
MIXED = "mixed"


class Times(NamedTuple):
    """The times of a batch's target tokens.

    Attributes:
        tokens: (B, 1) or (B, T).
        level: (B, 1) the sentence's time; where it is mixed, the share of its tokens that are unknown.
        mixed: (B, 1) True at sentences whose tokens are known (t = 0) or unknown (t = 1); None: nowhere.
        rank: (B, T) a mixed sentence's token is unknown where its rank lies below the level.
    """

    tokens: Tensor
    level: Tensor
    mixed: Optional[Tensor] = None
    rank: Optional[Tensor] = None

    @classmethod
    def draw(cls, key: Tensor, length: int, mixed: float = 0.0) -> "Times":
        """t ~ U(0, 1) of each sentence; a share of ``mixed`` has known and unknown tokens instead, as a
        masked language model.  ``key``: (B,)."""
        level, choice = uniform(fold(key, ("time", MIXED))).unsqueeze(-1)
        if mixed == 0:
            return cls(level, level)
        rank = uniform(fold(key.unsqueeze(1), "unknown", torch.arange(length, device=key.device)))
        return cls(level, level, choice < mixed, rank)._with_unknown()

    def later(self, advance: Callable[[Tensor], Tensor]) -> "Times":
        """Times behind these, by ``advance`` (t -> t' >= t): a sentence that has one time, or its tokens
        times of their own, goes there; in a mixed sentence more tokens become unknown, as many as its
        level at t' says, for that is how an earlier step of decoding sees it, but for the few tokens that decoding
        comes to doubt again."""
        tokens, level = advance(torch.cat((self.tokens, self.level), dim=1)).split((self.tokens.size(1), 1), dim=1)
        return self._replace(tokens=tokens, level=level)._with_unknown()

    def select(self, rows: Tensor) -> "Times":
        """The sentences ``rows``."""
        tokens, level = self.tokens[rows], self.level[rows]
        if self.mixed is None or self.rank is None:
            return Times(tokens, level)
        return Times(tokens, level, self.mixed[rows], self.rank[rows])

    def _with_unknown(self) -> "Times":
        if self.mixed is None or self.rank is None:
            return self
        unknown = (self.rank < self.level).to(self.level.dtype)
        return self._replace(tokens=torch.where(self.mixed, unknown, self.tokens))


def uniform_grid(steps: int) -> List[float]:
    """K + 1 equidistant times 1 = t_K > ... > t_1 > t_0 = 0.

    The network is evaluated at t_K, ..., t_1, so exactly K times.

    Raises:
        ValueError: ``steps`` < 1.
    """
    if steps < 1:
        raise ValueError(f"the number of decoding steps must be at least 1, not {steps}")
    return [i / steps for i in range(steps, -1, -1)]
