"""Candidates from a FastDiSS model: continuous diffusion, then the nearest tokens."""

import torch
from torch import Tensor

from ..diffusion.mask_predict import Network, mask_predict
from ..diffusion.sampling import MASK_PREDICT, sample
from ..models.base import Source
from ..models.fastdiss import FastDiSSModel
from .candidates import Candidates, Special, last_positions
from .config import Decoding


def decode(
    model: FastDiSSModel, source: Source, key: Tensor, mask: Tensor, decoding: Decoding, special: Special
) -> Candidates:
    """All candidates; key (S, C) and mask (S, C, T) lay them out."""
    shape, table = (mask.size(2), model.cfg.latent_dim), model.table()
    whole = model.denoiser.target(mask.flatten(0, 1))
    numbers = torch.arange(mask[..., 0].numel(), device=mask.device).view(mask.shape[:2])

    def denoise(z, t, z_bar, rows):
        memory, target = source.memory, whole
        if len(rows) < len(mask):
            memory, target = memory.select(rows), whole.select(numbers[rows].flatten())
        time = t.flatten(0, 1) if t.dim() else t.to(z.device).view(1, 1)
        return model.denoise(z.flatten(0, 1), time, z_bar.flatten(0, 1), target, memory).view(z.shape)

    def read_at(estimate, rows, where, refine):
        return read(model, table, estimate, mask[rows], where, decoding.estimate if refine else "direct", special)

    def read_all(estimate, rows):
        return round_all(model, estimate, mask[rows], special)

    def refine(estimate, rows):
        return model.refine(estimate, mask[rows], decoding.estimate)

    steps, sampler, early_exit = decoding.steps, decoding.sampler, decoding.early_exit
    if sampler.solver == MASK_PREDICT:
        network = Network(denoise, read_at, model.embedding)
        tokens, log_probs, taken, history = mask_predict(
            network, key, mask, shape[1], steps, sampler, early_exit, decoding.history
        )
    else:
        watched = read_all if decoding.history or early_exit else None
        found = sample(denoise, key, shape, steps, sampler, watched, early_exit, refine)
        tokens, log_probs = round_all(model, found.estimate, mask, special)
        taken, history = found.steps, found.history
    evaluations = taken * (2 if sampler.self_conditioning == "recompute" else 1)
    return Candidates(tokens, log_probs, mask, evaluations, history)


def round_all(model: FastDiSSModel, estimate: Tensor, mask: Tensor, special: Special):
    """Nearest tokens and their log-probabilities, (S, C, T) each, of estimates (S, C, T, D).

    The last position is the end of sentence; no other is, and none is padding or <s>.
    """
    return read(model, model.table(), estimate, mask, mask, "direct", special)[:2]


def read(
    model: FastDiSSModel, table: Tensor, estimate: Tensor, mask: Tensor, where: Tensor, how: str, special: Special
):
    """:func:`round_all` at the positions ``where``, and what the next step gets there for the estimates
    (S, C, T, D), see :meth:`FastDiSSModel.refine`; ``table`` is the model's."""
    last = last_positions(mask)
    tokens = torch.full_like(mask, special.pad, dtype=torch.long)
    log_probs = torch.zeros_like(mask, dtype=torch.float)
    where = where & mask
    found = model.read(estimate[where].to(table.dtype), table, list(special), mean=how == "expected")
    tokens[where], log_probs[where] = found.tokens, found.log_probs
    tokens, log_probs = tokens.masked_fill(last, special.eos), log_probs.masked_fill(last, 0.0)
    if found.mean is not None:
        return tokens, log_probs, torch.zeros_like(estimate).index_put((where,), found.mean.type_as(estimate))
    return tokens, log_probs, estimate if how == "direct" else model.embedding(tokens)
