"""Candidates from a FastDiSS model: continuous diffusion, then the nearest tokens."""

import torch
from torch import Tensor

from ..diffusion.mask_predict import Network, mask_predict
from ..diffusion.sampling import MASK_PREDICT, Decoded, sample
from ..models.fastdiss import FastDiSSModel
from ..modules.places import Places
from ..modules.rounding import Vocabulary
from ..modules.target import Memory
from .candidates import Special, last_positions
from .config import Decoding


def decode(
    model: FastDiSSModel, memory: Memory, key: Tensor, mask: Tensor, decoding: Decoding, special: Special
) -> Decoded:
    """All candidates; key (S, C) and mask (S, C, T) lay them out."""
    by = _by_confidence if decoding.sampler.solver == MASK_PREDICT else _by_solver
    found = by(model, _denoiser(model, memory, mask), key, mask, decoding, special)
    return found._replace(steps=found.steps * decoding.sampler.evaluations)


def _denoiser(model: FastDiSSModel, memory: Memory, mask: Tensor):
    """``(z, times, z_bar, rows) -> estimate``, (S', C, T, D), for the sentences ``rows`` (S',); ``times``: a
    :class:`TimeInputs` of (1, 1) or (S' C, T)."""
    whole = model.denoiser.target(mask.flatten(0, 1))
    numbers = torch.arange(mask[..., 0].numel(), device=mask.device).view(mask.shape[:2])

    def denoise(z, times, z_bar, rows):
        its_memory, target = memory, whole
        if len(rows) < len(mask):
            its_memory, target = memory.select(rows), whole.select(numbers[rows].flatten())
        return model.denoise(z.flatten(0, 1), times, z_bar.flatten(0, 1), target, its_memory).view(z.shape)

    return denoise


def _by_confidence(model, denoise, key, mask, decoding, special) -> Decoded:
    vocabulary, last, dim = Vocabulary.of(model.table(), special), last_positions(mask), model.embedding.dim
    both = model.time_inputs(torch.arange(2, dtype=torch.float, device=mask.device))  # of known and unknown tokens

    def denoise_at(z, unknown, z_bar, rows):
        return denoise(z, both.at(unknown.flatten(0, 1).long()), z_bar, rows)

    def read_at(estimate, rows, where, refine):
        how, ends = decoding.estimate if refine else "direct", last if len(rows) == len(mask) else last[rows]
        return read(model, vocabulary, estimate, ends, Places.of(where), how, special)

    network = Network(denoise_at, read_at, model.embedding)
    return mask_predict(
        network, key, mask, dim, decoding.steps, decoding.sampler, decoding.early_exit, decoding.history
    )


def _by_solver(model, denoise, key, mask, decoding, special) -> Decoded:
    vocabulary, shape = Vocabulary.of(model.table(), special), (mask.size(2), model.embedding.dim)
    rows, real, last = torch.arange(len(mask), device=mask.device), Places.of(mask), last_positions(mask)

    def denoise_at(z, t, z_bar, rows):
        return denoise(z, model.time_inputs(z.new_full((1, 1), float(t))), z_bar, rows)

    def read_all(estimate, rows, how="direct"):
        there = real if len(rows) == len(mask) else Places.of(mask[rows])
        return read(model, vocabulary, estimate, last[rows], there, how, special)

    def refine(estimate, rows):
        return estimate if decoding.estimate == "direct" else read_all(estimate, rows, decoding.estimate)[2]

    watched = (lambda *seen: read_all(*seen)[:2]) if decoding.history or decoding.early_exit else None
    found = sample(denoise_at, key, shape, decoding.steps, decoding.sampler, watched, decoding.early_exit, refine)
    tokens, log_probs, _ = read_all(found.estimate, rows)
    return Decoded(tokens, log_probs, found.steps, found.history)


def read(
    model: FastDiSSModel,
    vocabulary: Vocabulary,
    estimate: Tensor,
    last: Tensor,
    there: Places,
    how: str,
    special: Special,
):
    """Nearest tokens and their log-probabilities, (S, C, T) each, of estimates (S, C, T, D) ``there``; and what the next
    step gets: the estimates (how: ``direct``), or ``expected`` or nearest (``rounded``) token embeddings.

    At ``last`` positions (S, C, T) is the end of sentence; at no other, and at none padding or <s>.
    """
    found = model.read(there.take(estimate).to(vocabulary.table.dtype), vocabulary, mean=how == "expected")
    tokens = there.put(found.tokens, elsewhere=special.pad).masked_fill(last, special.eos)
    log_probs = there.put(found.log_probs).masked_fill(last, 0.0)
    if found.mean is not None:
        return tokens, log_probs, there.put(found.mean.type_as(estimate))
    return tokens, log_probs, estimate if how == "direct" else model.embedding(tokens)
