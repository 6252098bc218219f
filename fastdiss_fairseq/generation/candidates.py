"""Candidates of a batch, however a model makes them."""

import functools
from typing import List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.sampling import Decoded, Read


class Candidates(NamedTuple):
    """Candidates of S sentences: ``tokens``, ``log_probs`` and ``mask`` (S, C, T), the ``length_log_probs`` (S, C) of
    their predicted lengths, ``steps`` (S,) network evaluations, and ``history``, what stood after each step at the
    ``places`` (S, C, T) that were decoded."""

    tokens: Tensor
    log_probs: Tensor
    mask: Tensor
    length_log_probs: Tensor
    steps: Tensor
    history: List[Read]
    places: Tensor

    @classmethod
    def of(cls, decoded: Decoded, mask: Tensor, length_log_probs: Tensor) -> "Candidates":
        """Candidates as they were decoded at the places ``mask``."""
        return cls(decoded.tokens, decoded.log_probs, mask, length_log_probs, decoded.steps, decoded.history, mask)

    def on_host(self) -> "Candidates":
        """The same on the CPU, fetched as a whole before they are looked at one by one."""
        history = [
            Read(step.tokens.cpu(), step.log_probs.cpu(), None if step.rows is None else step.rows.cpu())
            for step in self.history
        ]
        moved = {name: getattr(self, name).cpu() for name in self._fields if name != "history"}
        return Candidates(history=history, **moved)

    def merged(self, words: Tensor) -> "Candidates":
        """The same with one token for each run of equal ones, with the log-probability of its most certain one.

        Positions that are predicted in parallel do not know of each other, and say the same word twice; taking one of
        them is customary for such models (Lee et al., 2018).  The history stays as it was.

        Args:
            words: (V,) True for the ids of which runs are merged.
        """
        later = self.tokens[..., 1:]
        again = (later == self.tokens[..., :-1]) & self.mask[..., 1:] & words[later]
        if not again.any():
            return self
        first = F.pad(~again, (1, 0), value=True)
        run = first.long().cumsum(-1) - 1  # the position that each token goes to
        lowest = torch.full_like(self.log_probs, -float("inf"))
        log_probs = lowest.scatter_reduce(-1, run, self.log_probs, "amax")
        kept = (first & self.mask).sum(-1, keepdim=True)
        mask = torch.arange(self.mask.size(-1), device=self.mask.device) < kept
        tokens = torch.zeros_like(self.tokens).scatter(-1, run, self.tokens)
        return self._replace(tokens=tokens, log_probs=log_probs.masked_fill(~mask, 0.0), mask=mask)

    def emptied(self, blank: Tensor) -> "Candidates":
        """The same with nothing but the end of sentence where ``blank`` (S,) says so, in the history, too."""
        if not blank.any():
            return self
        kept = ~blank.view(-1, 1, 1)
        mask, places = (place & kept | last_positions(place) for place in (self.mask, self.places))
        return self._replace(mask=mask, places=places)


class Special(NamedTuple):
    """Ids that are no words."""

    pad: int
    bos: int
    eos: int

    @classmethod
    def of(cls, dictionary) -> "Special":
        return cls(dictionary.pad(), dictionary.bos(), dictionary.eos())


def with_letters(dictionary) -> Tensor:
    """(V,) True for the tokens that have a letter: only of these is a run a mistake, not of signs, as in C++."""
    return _with_letters(tuple(dictionary.symbols), dictionary.nspecial)


@functools.lru_cache(maxsize=8)  # a generator is built for every call from Python
def _with_letters(symbols: Tuple[str, ...], specials: int) -> Tensor:
    return torch.tensor([i >= specials and any(map(str.isalpha, symbol)) for i, symbol in enumerate(symbols)])


def last_positions(mask: Tensor) -> Tensor:
    """True at the last real position of each candidate, where the sentence ends; mask (S, C, T)."""
    return mask & ~torch.cat((mask[..., 1:], torch.zeros_like(mask[..., :1])), dim=-1)
