"""The two stages of decoding, between which the host learns how long the candidates will be."""

import contextlib
from typing import NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compat import kept_casts
from ..diffusion.noise import fold, sentence_key
from ..diffusion.sampling import Decoded
from ..models.base import FewStepModel
from ..models.fastdiss import FastDiSSModel
from ..models.fsdfm import FSDFMModel
from ..modules.graphs import Graphs
from ..modules.target import Memory
from . import continuous, discrete
from .candidates import Candidates, Special
from .config import Decoding

#: How the models of each family make candidates.
DECODERS = {FastDiSSModel: continuous.decode, FSDFMModel: discrete.decode}

#: With CUDA graphs lengths are rounded up to multiples of this.
BUCKET = 8
#: Batches of more positions, of the source times the candidates, keep a GPU busy without graphs.
GRAPHED_POSITIONS = 4096
#: Positions, of all candidates, that a CPU decodes together.
POSITIONS_AT_ONCE = 8192


class Begun(NamedTuple):
    """What the first stage finds: the source's ``memory``, noise keys ``key``, candidate ``lengths`` and their
    log-probabilities ``length_log_probs``, (S, C) each, lengths x seeds, lengths first."""

    memory: Memory
    key: Tensor
    lengths: Tensor
    length_log_probs: Tensor

    def flat(self) -> Tuple[Tensor, ...]:
        return (*self[1:], *self.memory.flat())

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Begun":
        return cls(Memory.of(*tensors[3:]), *tensors[:3])


class Stages:
    """Decoding with one model and one set of options."""

    def __init__(self, model: FewStepModel, decoding: Decoding, special: Special):
        self.model, self.decoding, self.special = model, decoding, special
        self.family = next(decode for kind, decode in DECODERS.items() if isinstance(model, kind))

    def __call__(self, src_tokens: Tensor) -> Candidates:
        """All candidates of a batch of sources (S, L), mostly inference tensors.  Where batches are recorded, threads take
        turns with all: kept casts are those of all threads."""
        graphs = self.model.graphs
        with self._without_gradients(), kept_casts(), contextlib.nullcontext() if graphs is None else graphs.lock:
            if graphs is not None and self._can_be_recorded(src_tokens):
                return self._replayed(graphs, src_tokens)
            begun = self.begin(src_tokens)
            mask = upto(begun.lengths, int(begun.lengths.max()))
            return Candidates.of(self._in_pieces(begun, mask), mask, begun.length_log_probs)

    def _without_gradients(self):
        """Inference mode, in which torch does less for each operation; not where it keeps no casts of weights, nor where
        it compiles, which older torch could not do there."""
        model = self.model
        slow = model.autocasts or "decoding_compile" in model.changed_by
        return torch.no_grad() if slow else torch.inference_mode()

    def begin(self, src_tokens: Tensor) -> Begun:
        """The first stage."""
        model, decoding = self.model, self.decoding
        source, longest = model.encode(src_tokens), model.max_positions()[1]
        beam, factor = decoding.length_beam, decoding.length_factor
        lengths, log_probs = model.length.top(source.length_logits, source.lengths, beam, longest, factor)
        seeds = torch.arange(decoding.noise_beam, device=lengths.device)
        own = sentence_key(decoding.seed, src_tokens, src_tokens.ne(self.special.pad))
        key = fold(own.unsqueeze(1), "candidate", seeds).repeat(1, lengths.size(1))
        of_seeds = lambda x: x.unsqueeze(2).expand(-1, -1, len(seeds)).flatten(1)
        return Begun(source.memory, key, of_seeds(lengths), of_seeds(log_probs))

    def finish(self, memory: Memory, key: Tensor, mask: Tensor) -> Decoded:
        """The second stage; key (S, C) and mask (S, C, T) lay the candidates out."""
        return self.family(self.model, memory, key, mask, self.decoding, self.special)

    def _in_pieces(self, begun: Begun, mask: Tensor) -> Decoded:
        """The second stage of a few sentences at a time on a CPU, whose caches large batches overflow."""
        at_once = max(1, POSITIONS_AT_ONCE // mask[0].numel())
        if mask.device.type != "cpu" or self.decoding.history or len(mask) <= at_once:
            return self.finish(begun.memory, begun.key, mask)
        pieces = []
        for rows in torch.arange(len(mask)).split(at_once):
            longest = int(begun.lengths[rows].max())
            found = self.finish(begun.memory.select(rows), begun.key[rows], mask[rows, :, :longest])
            pieces.append([F.pad(x, (0, mask.size(2) - longest)) for x in found[:2]] + [found.steps])
        tokens, log_probs, steps = map(torch.cat, zip(*pieces))
        return Decoded(tokens, log_probs, steps, [])

    def _can_be_recorded(self, src_tokens: Tensor) -> bool:
        """Whether the batch is small, and what is computed does not depend on what comes out."""
        decoding = self.decoding
        positions = src_tokens.numel() * decoding.length_beam * decoding.noise_beam
        fixed = not decoding.early_exit and not decoding.history and decoding.sampler.has_fixed_sizes
        return fixed and positions <= GRAPHED_POSITIONS

    def _read_by_begin(self) -> tuple:
        """The options that the first stage depends on."""
        decoding = self.decoding
        return decoding.length_beam, decoding.noise_beam, decoding.length_factor, decoding.seed, self.special.pad

    def _replayed(self, graphs: Graphs, src_tokens: Tensor) -> Candidates:
        """As :meth:`__call__`, of a batch that is filled up to sizes that may have come before."""
        sentences, width = src_tokens.shape
        rows = 1 << (sentences - 1).bit_length()
        wide = F.pad(src_tokens, (0, round_up(width) - width), value=self.special.pad)
        filled = F.pad(wide, (0, 0, 0, rows - sentences), value=self.special.eos)
        begun = Begun.of(graphs(self._read_by_begin(), lambda tokens: self.begin(tokens).flat(), filled))
        longest = int(begun.lengths[:sentences].max())
        mask, length_log_probs = upto(begun.lengths, round_up(longest)), begun.length_log_probs[:sentences].clone()
        finish = lambda key, mask, *memory: self.finish(Memory.of(*memory), key, mask)[:3]
        found = graphs((self.decoding, self.special), finish, begun.key, mask, *begun.memory.flat())
        tokens, log_probs = (x[:sentences, :, :longest].clone() for x in found[:2])
        decoded = Decoded(tokens, log_probs, found[2][:sentences].clone(), [])
        return Candidates.of(decoded, mask[:sentences, :, :longest], length_log_probs)


def upto(lengths: Tensor, longest: int) -> Tensor:
    """(..., longest): True at as many positions as ``lengths`` (...) say."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(-1)


def round_up(length: int) -> int:
    return -(-length // BUCKET) * BUCKET
