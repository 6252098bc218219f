"""Decoding by confidence: each step takes some tokens as known (t = 0) and begins anew with the others (t = 1),
first of all with repetitions.

Mask-predict (Ghazvininejad et al., 2019) with pure noise in the place of the mask.  It needs a network that was
trained on sentences of known and unknown tokens (:class:`fastdiss_fairseq.diffusion.times.Times`).
"""

from dataclasses import dataclass
from typing import Callable, Iterator, Tuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .noise import fold, gaussian
from .sampling import Decoded, Read, Sampler


@dataclass
class Network:
    """What a step needs of the model.

    Attributes:
        denoise: as in :func:`fastdiss_fairseq.diffusion.sampling.sample`, with t (S', C, T).
        read: ``(estimate, rows, where, refine) -> tokens, log_probs, refined``, (S', C, T) and (S', C, T, D), which
            count only ``where`` (S', C, T) is True: nearest tokens, and what self-conditioning gets; where ``refine``
            is False, that will not be used.
        embed: tokens -> z_0.
    """

    denoise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    read: Callable[[Tensor, Tensor, Tensor, bool], Tuple[Tensor, Tensor, Tensor]]
    embed: Callable[[Tensor], Tensor]


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
    sentences, history = Sentences(mask, dim), []
    start, end = torch.tensor([0.0, 1.0])
    scales = sampler.trained.alpha(start), sampler.trained.sigma(end) * sampler.temperature
    for index, noise in enumerate(noise_of_steps(key, steps, mask.size(2), dim)):
        if index:
            sentences.doubt(index, steps, early_exit)
        if len(sentences.rows):
            sentences.predict(network, noise, scales, sampler.self_conditioning, index + 1 == steps)
            sentences.latest.index_fill_(0, sentences.rows, index)
        if watched:
            history.append(Read(sentences.tokens.clone(), sentences.log_probs.clone(), sentences.rows))
    return Decoded(sentences.tokens, sentences.log_probs, sentences.taken, history)


class Sentences:
    """What stands in S sentences with C candidates each.

    Attributes:
        tokens, log_probs: (S, C, T), each from the step that predicted it last.
        unknown: (S, C, T), True where the next step predicts anew.
        z_bar: (S, C, T, D), the estimates for self-conditioning.
        rows: the sentences that take the step.
        taken: (S,) steps; ``latest``: (S,) the last of them; ``settled``: (S,) whether it changed no token.
    """

    def __init__(self, mask: Tensor, dim: int):
        self.mask, self.unknown = mask, mask.clone()
        self.tokens, self.log_probs = (
            torch.zeros_like(mask, dtype=torch.long),
            torch.zeros_like(mask, dtype=torch.float),
        )
        self.z_bar = torch.zeros(*mask.shape, dim, device=mask.device)
        self.rows = torch.arange(len(mask), device=mask.device)
        self.taken, self.latest, self.settled = torch.zeros_like(self.rows), torch.zeros_like(self.rows), self.rows < 0

    def doubt(self, index: int, steps: int, early_exit: bool) -> None:
        """Choose what step ``index`` predicts anew, and which sentences take it."""
        confidence = self.log_probs.masked_fill(repeated(self.tokens, self.log_probs), -float("inf"))
        doubtful = least_confident(confidence, self.mask, steps - index, steps)
        if early_exit:
            rested = index - self.latest > steps // PAUSE
            self.rows = worth_a_step(doubtful, self.unknown, self.settled, rested).nonzero().squeeze(1)
        self.unknown[self.rows] = doubtful[self.rows]

    def predict(self, network: Network, noise: Tensor, scales, self_conditioning: str, is_last: bool) -> None:
        """Predict the unknown tokens, from ``noise`` (S, C, T, D) in their places; ``scales`` of what is known and of
        the noise."""
        rows, before, unknown = self.rows, self.tokens[self.rows], self.unknown[self.rows]
        known = network.embed(before)
        z = torch.where(unknown.unsqueeze(-1), noise[rows] * scales[1], known * scales[0])

        def look(condition, refine):
            estimate = network.denoise(z, unknown.to(z.dtype), condition, rows)
            tokens, log_probs, refined = network.read(estimate, rows, unknown, refine)
            return tokens, log_probs, torch.where(unknown.unsqueeze(-1), refined, known)

        reuse = self_conditioning == "previous"
        condition = self.z_bar[rows] if reuse else torch.zeros_like(z)
        if self_conditioning == "recompute":
            condition = look(condition, refine=True)[2]
        tokens, log_probs, self.z_bar[rows] = look(condition, refine=reuse and not is_last)
        self.tokens[rows] = torch.where(unknown, tokens, before)
        self.log_probs[rows] = torch.where(unknown, log_probs, self.log_probs[rows])
        self.settled[rows] = (self.tokens[rows] == before).flatten(1).all(1)
        self.taken[rows] += 1


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
