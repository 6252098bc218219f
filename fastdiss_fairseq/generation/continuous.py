"""Candidates from a FastDiSS model: continuous diffusion, then the nearest tokens."""

import torch
from torch import Tensor

from ..diffusion.mask_predict import Network, mask_predict
from ..diffusion.sampling import MASK_PREDICT, sample
from ..models.fastdiss import FastDiSSModel
from ..modules.places import Places
from ..modules.rounding import Vocabulary
from ..modules.target import Memory
from .candidates import Decoded, Special, last_positions
from .config import Decoding


def decode(
    model: FastDiSSModel, memory: Memory, key: Tensor, mask: Tensor, decoding: Decoding, special: Special
) -> Decoded:
    """All candidates; key (S, C) and mask (S, C, T) lay them out."""
    shape, vocabulary = (mask.size(2), model.cfg.latent_dim), Vocabulary.of(model.table(), special)
    whole = model.denoiser.target(mask.flatten(0, 1))
    numbers = torch.arange(mask[..., 0].numel(), device=mask.device).view(mask.shape[:2])

    def denoise(z, t, z_bar, rows):
        its_memory, target = memory, whole
        if len(rows) < len(mask):
            its_memory, target = memory.select(rows), whole.select(numbers[rows].flatten())
        time = t.flatten(0, 1) if t.dim() else z.new_full((1, 1), float(t))
        return model.denoise(z.flatten(0, 1), time, z_bar.flatten(0, 1), target, its_memory).view(z.shape)

    def read_at(estimate, rows, where, refine):
        there, how = Places.of(where & mask[rows]), decoding.estimate if refine else "direct"
        return read(model, vocabulary, estimate, mask[rows], there, how, special)

    steps, sampler, early_exit = decoding.steps, decoding.sampler, decoding.early_exit
    if sampler.solver == MASK_PREDICT:
        network = Network(denoise, read_at, model.embedding)
        tokens, log_probs, taken, history = mask_predict(
            network, key, mask, shape[1], steps, sampler, early_exit, decoding.history
        )
    else:
        rows, real = torch.arange(len(mask), device=mask.device), Places.of(mask)

        def read_all(estimate, rows, how="direct"):
            there = real if len(rows) == len(mask) else Places.of(mask[rows])
            return read(model, vocabulary, estimate, mask[rows], there, how, special)

        def refine(estimate, rows):
            return estimate if decoding.estimate == "direct" else read_all(estimate, rows, decoding.estimate)[2]

        watched = (lambda *seen: read_all(*seen)[:2]) if decoding.history or early_exit else None
        found = sample(denoise, key, shape, steps, sampler, watched, early_exit, refine)
        tokens, log_probs, _ = read_all(found.estimate, rows)
        taken, history = found.steps, found.history
    evaluations = taken * (2 if sampler.self_conditioning == "recompute" else 1)
    return Decoded(tokens, log_probs, evaluations, history)


def read(
    model: FastDiSSModel,
    vocabulary: Vocabulary,
    estimate: Tensor,
    mask: Tensor,
    there: Places,
    how: str,
    special: Special,
):
    """Nearest tokens and their log-probabilities, (S, C, T) each, of estimates (S, C, T, D) ``there``, among what is
    real (``mask``); and what the next step gets: the estimates (how: ``direct``), or ``expected`` or nearest
    (``rounded``) token embeddings.

    The last position is the end of sentence; no other is, and none is padding or <s>.
    """
    last = last_positions(mask)
    found = model.read(there.take(estimate).to(vocabulary.table.dtype), vocabulary, mean=how == "expected")
    tokens = there.put(found.tokens, elsewhere=special.pad).masked_fill(last, special.eos)
    log_probs = there.put(found.log_probs).masked_fill(last, 0.0)
    if found.mean is not None:
        return tokens, log_probs, there.put(found.mean.type_as(estimate))
    return tokens, log_probs, estimate if how == "direct" else model.embedding(tokens)
