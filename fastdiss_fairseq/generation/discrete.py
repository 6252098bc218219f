"""Candidates from an FS-DFM model: tokens that jump from noise to words."""

import torch
from torch import Tensor

from ..diffusion.noise import fold
from ..diffusion.sampling import Decoded, Read
from ..flow.sampling import sample
from ..models.fsdfm import FSDFMModel
from ..modules.places import Places
from ..modules.rounding import by_pieces
from ..modules.target import Memory
from .candidates import Special, last_positions
from .config import Decoding


def decode(
    model: FSDFMModel, memory: Memory, key: Tensor, mask: Tensor, decoding: Decoding, special: Special
) -> Decoded:
    """All candidates; key (S, C) and mask (S, C, T) lay them out."""
    last = last_positions(mask)
    table, target = model.table(), model.denoiser.target(mask.flatten(0, 1))
    words_at = Places.of(mask & ~last)
    ends = torch.full_like(mask, special.pad, dtype=torch.long).masked_fill(last, special.eos)
    told = torch.full((1, 1), model.told_step(decoding.steps), device=mask.device)

    def whole(words):
        return words_at.replace(ends, words)

    def look(x, t):
        time = torch.full_like(told, float(t))
        states = model.predict(whole(x).flatten(0, 1), time, told, target, memory)
        return words_at.take(states.view(*mask.shape, -1))

    def on_logits(function, states, *others):
        return by_pieces(lambda piece, *rest: function(model.logits(piece, table), *rest), states, *others)

    keys = words_at.take(fold(key.unsqueeze(2), torch.arange(mask.size(2), device=mask.device)))

    def laid_out(words, log_probs):
        return Read(whole(words), words_at.put(log_probs))

    found = sample(look, on_logits, keys, decoding.steps, decoding.sampler, decoding.history)
    history = [laid_out(*step) for step in found.history]
    taken = torch.full_like(key[:, 0], decoding.steps)
    result = laid_out(found.tokens, found.log_probs)
    return Decoded(result.tokens, result.log_probs, taken, history)
