"""Decoding by confidence: each step takes some tokens as known (t = 0) and begins anew with the others (t = 1),
first of all with repetitions.

Mask-predict (Ghazvininejad et al., 2019) with pure noise in the place of the mask.  It needs a network that was
trained on sentences of known and unknown tokens (:class:`fastdiss_fairseq.diffusion.times.Times`).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Iterator, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .noise import fold, gaussian
from .process import Process
from .sampling import Decoded, Read, Sampler


@dataclass
class Network:
    """What a step needs of the model.

    Attributes:
        denoise: ``(z, unknown, z_bar, rows) -> estimate``, (S', C, T, D), for the sentences ``rows`` (S',), at t = 1
            where ``unknown`` (S', C, T) is True, else at 0.
        read: ``(estimate, rows, where, refine) -> tokens, log_probs, refined``, (S', C, T) and (S', C, T, D), which
            count only ``where`` (S', C, T) is True: nearest tokens, and what self-conditioning gets; where ``refine``
            is False, that will not be used.
        embed: tokens -> z_0.
    """

    denoise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    read: Callable[[Tensor, Tensor, Tensor, bool], Tuple[Tensor, Tensor, Tensor]]
    embed: Callable[[Tensor], Tensor]


class Sentences(NamedTuple):
    """What stands in S sentences with C candidates each.

    Attributes:
        mask: (S, C, T), True at real positions.
        unknown: (S, C, T), True where the next step predicts anew.
        tokens, log_probs: (S, C, T), each from the step that predicted it last.
        z_bar: (S, C, T, D), the estimates for self-conditioning.
        taken: (S,) steps; ``latest``: (S,) the last of them; ``settled``: (S,) whether it changed no token.
    """

    mask: Tensor
    unknown: Tensor
    tokens: Tensor
    log_probs: Tensor
    z_bar: Tensor
    taken: Tensor
    latest: Tensor
    settled: Tensor

    @classmethod
    def of(cls, mask: Tensor, dim: int) -> "Sentences":
        """Sentences of which nothing is known."""
        none = torch.zeros(len(mask), dtype=torch.long, device=mask.device)
        tokens, z_bar = torch.zeros_like(mask, dtype=torch.long), torch.zeros(*mask.shape, dim, device=mask.device)
        return cls(mask, mask, tokens, torch.zeros_like(mask, dtype=torch.float), z_bar, none, none, none < 0)

    def select(self, rows: Tensor) -> "Sentences":
        """The sentences ``rows``; these themselves where that is all."""
        return self if len(rows) == len(self.mask) else Sentences(*(part[rows] for part in self))

    def update(self, rows: Tensor, new: "Sentences") -> "Sentences":
        """All, with ``new`` ones at ``rows``."""
        if len(rows) == len(self.mask):
            return new
        return Sentences(*(old.index_copy(0, rows, part) for old, part in zip(self, new)))

    def doubtful(self, index: int, steps: int) -> Tensor:
        """(S, C, T) True at what step ``index`` predicts anew."""
        confidence = self.log_probs.masked_fill(repeated(self.tokens, self.log_probs), -float("inf"))
        return least_confident(confidence, self.mask, steps - index, steps)

    def predicted(self, network: Network, noise: Tensor, scales, rows: Tensor, how: str, index: int, is_last: bool):
        """The same after step ``index``.

        Args:
            noise: (S, C, T, D), in the places of unknown tokens; ``scales`` of what is known and of the noise.
            rows: the sentences' numbers.
            how: of :data:`.sampling.SELF_CONDITIONING`.
        """
        known, where = network.embed(self.tokens), self.unknown.unsqueeze(-1)
        z = torch.where(where, noise * scales[1], known * scales[0])

        def look(condition, refine):
            estimate = network.denoise(z, self.unknown, condition, rows)
            tokens, log_probs, refined = network.read(estimate, rows, self.unknown, refine)
            return tokens, log_probs, torch.where(where, refined, known) if refine else self.z_bar

        condition = self.z_bar if how == "previous" else torch.zeros_like(z)
        if how == "recompute":
            condition = look(condition, refine=True)[2]
        tokens, log_probs, z_bar = look(condition, refine=how == "previous" and not is_last)
        tokens = torch.where(self.unknown, tokens, self.tokens)
        return self._replace(
            tokens=tokens,
            log_probs=torch.where(self.unknown, log_probs, self.log_probs),
            z_bar=z_bar,
            taken=self.taken + 1,
            latest=torch.full_like(self.latest, index),
            settled=(tokens == self.tokens).flatten(1).all(1),
        )


def mask_predict(
    network: Network,
    key: Tensor,
    mask: Tensor,
    dim: int,
    steps: int,
    sampler: Sampler,
    early_exit: bool = False,
    watched: bool = False,
) -> Decoded:
    """Decode S sentences with C candidates each in K evaluations of the network.

    Args:
        key: (S, C) int64 noise keys.
        mask: (S, C, T), True at real positions.
        dim: D.
        sampler: of which the trained process, the temperature and the self-conditioning count.
        early_exit: once a step changed none of a sentence's tokens, in no candidate, it skips the next K / 20 steps
            (rounded down), and others that would look at no fewer positions.
        watched: keep a history.
    """
    found, history = Sentences.of(mask, dim), []
    rows = torch.arange(len(mask), device=mask.device)
    of_known, of_unknown = scales_of_ends(sampler.trained)
    scales = of_known, of_unknown * sampler.temperature
    for index, noise in enumerate(noise_of_steps(key, steps, mask.size(2), dim)):
        if index:
            doubtful = found.doubtful(index, steps)
            if early_exit:
                looks = worth_a_step(doubtful, found, index, steps)
                rows, doubtful = looks.nonzero().squeeze(1), torch.where(looks.view(-1, 1, 1), doubtful, found.unknown)
            found = found._replace(unknown=doubtful)
        if len(rows):
            some, noise = found.select(rows), noise if len(rows) == len(mask) else noise[rows]
            how, is_last = sampler.self_conditioning, index + 1 == steps
            found = found.update(rows, some.predicted(network, noise, scales, rows, how, index, is_last))
        if watched:
            history.append(Read(found.tokens, found.log_probs, rows))
    return Decoded(found.tokens, found.log_probs, found.taken, history)


@lru_cache(maxsize=64)
def scales_of_ends(process: Process) -> Tuple[float, float]:
    """Of what is known, at t = 0, and of the noise at t = 1."""
    alpha, sigma = process.scales(torch.tensor([0.0, 1.0]))
    return alpha[0].item(), sigma[1].item()


#: Early exit skips this part of the K steps after one that changed nothing.
PAUSE = 20

#: Numbers of noise that are drawn at a time: of several steps where they are few, since drawing a few takes as long
#: as drawing some thousands.
DRAWN_AT_ONCE = 2**18


def noise_of_steps(key: Tensor, steps: int, length: int, dim: int) -> Iterator[Tensor]:
    """Standard normal noise (S, C, T, D) of each step, for keys (S, C)."""
    keys = fold(key, "start").unsqueeze(0)
    if steps > 1:
        later = torch.arange(steps - 1, device=key.device).view(-1, *[1] * key.dim())
        keys = torch.cat((keys, fold(key, "step", later)))
    for some in keys.split(max(1, DRAWN_AT_ONCE // (key.numel() * length * dim))):
        yield from gaussian(some, length, dim)


def worth_a_step(doubtful: Tensor, found: Sentences, index: int, steps: int) -> Tensor:
    """(S,) True where ``doubtful`` positions (S, C, T) remain for step ``index``.  Where the last step changed no token,
    they must be fewer than its unknown ones, and the sentence have rested since."""
    fewer = (doubtful.sum(-1) < found.unknown.sum(-1)).any(1)
    rested = index - found.latest > steps // PAUSE
    return doubtful.flatten(1).any(1) & (~found.settled | (fewer & rested))


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
