"""Rounding estimates to tokens: softmaxes over the vocabulary, a few positions at a time.

Logits of all positions of a batch are its largest tensor by far (B T V); nothing here keeps them.
"""

from functools import partial
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..compat import no_autocast

#: Positions whose logits are computed at a time: they should fit a CPU's cache, or a part of a GPU's memory.
AT_ONCE = {"cpu": 64, "cuda": 4096}
#: The same of pieces that autograd computes anew, which takes the host a while for each.
AT_ONCE_ANEW = {"cpu": 256, "cuda": 4096}


def in_pieces(positions: Tensor, sizes: Dict[str, int] = AT_ONCE):
    """(N, ...) in pieces of the size for their device."""
    return positions.split(sizes.get(positions.device.type, 4096))


def by_pieces(function: Callable[..., Tuple[Tensor, ...]], *positions: Tensor) -> Tuple[Tensor, ...]:
    """The results (N, ...) of ``function`` on pieces of tensors (N, ...), joined.  What it computes on the way, such
    as logits, is not kept for the backward pass but computed anew there."""
    run, sizes = function, AT_ONCE
    if torch.is_grad_enabled():
        run, sizes = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False), AT_ONCE_ANEW
    pieces = zip(*(in_pieces(x, sizes) for x in positions))
    return tuple(map(torch.cat, zip(*(run(*piece) for piece in pieces))))


class Rounding(NamedTuple):
    """``loss`` (N,) float32 cross-entropies; ``correct`` (N,), True where the nearest token is the target."""

    loss: Tensor
    correct: Tensor


def rounding_loss(states: Tensor, table: Tensor, target: Tensor, smoothing: float = 0.0) -> Rounding:
    """Cross-entropy of ``softmax(states @ table.T)``, with uniform label smoothing.

    The logits are computed anew in the backward pass instead of being kept.

    Args:
        states: (N, D), in the precision that the logits are to be computed in, as ``table`` (V, D).
        target: (N,) ids.
    """
    with no_autocast(
        states.device
    ):  # fairseq's --amp leaves it before the backward pass, whose logits must be the same
        return Rounding(*_CrossEntropy.apply(states, table, target, smoothing))


def nearest_token(states: Tensor, table: Tensor) -> Tensor:
    """(N,) ids of the largest logits."""
    return torch.cat([largest(_logits(piece, table))[1] for piece in in_pieces(states)])


def largest(logits: Tensor, width: int = 128) -> Tuple[Tensor, Tensor]:
    """The largest of each row of logits (N, V), and its id, the first among equals.

    On a CPU ``max`` takes several times as long with ids as without (torch 2.13): the largest of ``width`` at a time, then
    where among those of the best ones."""
    if logits.device.type != "cpu" or torch.jit.is_tracing():
        best, ids = logits.max(-1)
        return best, ids
    size = logits.size(1)
    width = min(width, size)
    whole = size - size % width
    blocks = logits[:, :whole].view(len(logits), whole // width, width).amax(-1)
    if whole < size:
        blocks = torch.cat([blocks, logits[:, whole:].amax(-1, keepdim=True)], dim=1)
    start = (blocks.argmax(-1) * width).clamp(max=size - width)
    best, place = logits.gather(1, start[:, None] + torch.arange(width)).max(-1)
    return best, start + place


class Reading(NamedTuple):
    """Nearest ``tokens`` (N,), their ``log_probs`` (N,), and the ``mean`` rows (N, D) under the softmax (or
    None)."""

    tokens: Tensor
    log_probs: Tensor
    mean: Optional[Tensor]


def read(states: Tensor, vocabulary: "Vocabulary", mean: bool = False) -> Reading:
    """Tokens, and where asked for :func:`mean_rows`, from the same logits, for states (N, D) as in
    :func:`rounding_loss`.  Ids that are never read count in the mean, but not in ``log_probs``."""
    pieces = [read_piece(piece, vocabulary, mean) for piece in in_pieces(states)]
    tokens, log_probs, rows = zip(*pieces)
    return Reading(torch.cat(tokens), torch.cat(log_probs), torch.cat(rows) if mean else None)


class Vocabulary(NamedTuple):
    """The ``table`` (V, D); ``bar`` (V,), minus infinity at ids that are never read and 0 at others; and
    ``barred`` (n, D), the rows of the former."""

    table: Tensor
    bar: Tensor
    barred: Tensor

    @classmethod
    def of(cls, table: Tensor, never: Sequence[int]) -> "Vocabulary":
        return cls(
            table,
            bar(len(table), never, dtype=table.dtype, device=table.device),
            torch.stack([table[i] for i in never]),
        )


def bar(size: int, never: Sequence[int], **kind) -> Tensor:
    """(size,): minus infinity at the ids ``never``, 0 at others; made on the device of ``kind``."""
    found = torch.zeros(size, **kind)
    for i in never:
        found[i].fill_(-float("inf"))
    return found


def read_piece(states: Tensor, vocabulary: Vocabulary, mean: bool) -> Reading:
    """:func:`read` at few positions."""
    table = vocabulary.table
    logits = torch.addmm(vocabulary.bar, states, table.T).float()
    best, tokens = largest(logits)
    weights = logits.softmax(-1)
    log_probs = weights.gather(1, tokens[:, None]).squeeze(1).log()
    rows = None
    if mean:
        barred = _logits(states, vocabulary.barred)
        others = (barred - (best - log_probs)[:, None]).clamp(max=80).exp()  # e^80 is still a float32
        rows = (weights.type_as(table) @ table).float() + others @ vocabulary.barred.float()
        rows = rows / (1 + others.sum(-1, keepdim=True))
    return Reading(tokens, log_probs, rows)


def mean_rows(states: Tensor, table: Tensor) -> Tensor:
    """The table's mean rows (N, D) under the softmax of the logits, float32: where z_0 is one of the rows, the
    estimate of it with the least mean squared error (Dieleman et al., 2022, eq. 6)."""
    return torch.cat([_mean_rows(_logits(piece, table), table) for piece in in_pieces(states)])


def _mean_rows(logits, table):
    return (logits.softmax(-1).type_as(table) @ table).float()


def _logits(states: Tensor, table: Tensor) -> Tensor:
    return (states @ table.T).float()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, table, target, smoothing):
        losses, correct = [], []
        for piece, wanted in zip(in_pieces(states), in_pieces(target)):
            logits = _logits(piece, table)
            log_probs = logits.log_softmax(-1)
            aim = (1 - smoothing) * log_probs.gather(1, wanted[:, None]).squeeze(1)
            if smoothing:
                aim = aim + smoothing * log_probs.mean(-1)
            losses.append(-aim)
            correct.append(largest(logits)[1] == wanted)
        correct = torch.cat(correct)
        ctx.save_for_backward(states, table, target)
        ctx.smoothing = smoothing
        ctx.mark_non_differentiable(correct)
        return torch.cat(losses), correct

    @staticmethod
    @once_differentiable
    def backward(ctx, of_losses, _):
        states, table, target = ctx.saved_tensors
        of_states, of_table = [], torch.zeros_like(table, dtype=torch.float)
        for piece, wanted, weight in zip(*map(in_pieces, (states, target, of_losses))):
            change = _logits(piece, table).softmax(-1)
            if ctx.smoothing:
                change -= ctx.smoothing / len(table)
            change.scatter_add_(1, wanted[:, None], change.new_full((len(wanted), 1), ctx.smoothing - 1))
            change = change.mul_(weight[:, None]).type_as(table)
            of_states.append(change @ table)
            of_table += change.T @ piece
        return torch.cat(of_states), of_table.type_as(table), None, None
