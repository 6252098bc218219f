"""Stateless random numbers: every draw is a function of a key, not of a generator's history.

A key is an int64 tensor made by :func:`fold` from whatever identifies a draw (seed, update,
sentence, stream name).  The numbers of a sentence therefore do not depend on the batch it stands
in, on padding, on its order or on the device, and resuming needs no stored generator state.
The mixing function is the finaliser of SplitMix64 (Steele et al., 2014).
"""

import math
import zlib
from functools import lru_cache
from typing import Callable, Tuple, Union

import numpy as np
import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as int64
_MIX1 = -4658895280553007687
_MIX2 = -7723592293110705685


#: Keys while they are computed with: on a CPU in numpy, which gives torch's integers, of few keys in a third of the time.
Bits = Union[Tensor, np.ndarray]


def _overflows():
    """Products of keys are meant to overflow; numpy warns of that where they are single numbers."""
    return np.errstate(over="ignore")


def _bits(key: Tensor) -> Bits:
    return key.numpy() if key.device.type == "cpu" else key


def _tensor(bits: Bits) -> Tensor:
    return bits if isinstance(bits, Tensor) else torch.from_numpy(np.asarray(bits))


def _xor_shift_right(x: Bits, bits: int) -> Bits:
    return x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))


def _mix(x: Bits) -> Bits:
    x = _xor_shift_right(x, 30) * _MIX1
    x = _xor_shift_right(x, 27) * _MIX2
    return _xor_shift_right(x, 31)


Part = Union[int, str, Tensor]


def fold(key: Tensor, *parts: Union[Part, Tuple[Part, ...]]) -> Tensor:
    """Derive a new key from ``key`` and further identifying parts.

    Args:
        key: int64 tensor of any shape.
        parts: integers, stream names or int64 tensors, broadcast against ``key``; of several in a tuple, the keys of
            each stand in a new first dimension.
    Returns:
        int64 tensor of the broadcast shape; different parts give independent keys.
    """
    bits = _bits(key)
    stack: Callable[..., Bits] = torch.stack if isinstance(bits, Tensor) else np.stack
    with _overflows():
        for part in parts:
            named = stack([_with(bits, one) for one in part]) if isinstance(part, tuple) else _with(bits, part)
            bits = _mix(named + _GOLDEN)
    return _tensor(bits)


def _with(key: Bits, part: Part) -> Bits:
    return key ^ (_spread(_bits(part)) if isinstance(part, Tensor) else _spread_number(part))


def _spread(part: Bits) -> Bits:
    return _mix(part * _GOLDEN + 1)


@lru_cache(maxsize=4096)
def _spread_number(part: Union[int, str]) -> int:
    """The same of a number or a name; on the host, so that nothing is sent to the keys' device."""
    number = zlib.crc32(part.encode("utf-8")) if isinstance(part, str) else part
    return int(_spread(torch.tensor(number, dtype=torch.int64)))


def sentence_key(seed: int, tokens: Tensor, mask: Tensor) -> Tensor:
    """A key for each sentence from its content, the same whatever the padding around it.

    Args:
        seed: the user's seed.
        tokens: (B, S) int64 token ids.
        mask: (B, S) True at real tokens.
    Returns:
        (B,) int64 keys.
    """
    position = mask.long().cumsum(1)
    terms = fold(tokens.long(), position).masked_fill(~mask, 0)
    return fold(terms.sum(1), "sentence", seed)


def _unit(bits: Bits) -> Tensor:
    """32 random bits (as non-negative int64) to float32 in (0, 1]."""
    return (_tensor(bits >> 8).float() + 0.5) * 2.0**-24


def uniform(key: Tensor) -> Tensor:
    """One number in (0, 1] for each key: float32, the shape of ``key``."""
    with _overflows():
        return _unit(_mix(_bits(key)) & 0xFFFFFFFF)


def gaussian(key: Tensor, length: int, dim: int) -> Tensor:
    """Standard normal noise for each key, by the Box-Muller transform.

    Element (b, i, d) depends on ``key[b]``, i and d alone: a longer sentence keeps the noise of a
    shorter one as its beginning.

    Args:
        key: (B,) int64, or any shape.
        length: positions T.
        dim: dimension D.
    Returns:
        (B, T, D) float32.
    """
    half = (dim + 1) // 2
    index = torch.arange(length * half, device=key.device)
    bits = _mix(_with(_bits(key.unsqueeze(-1)), index) + _GOLDEN)  # of no single number: numpy does not warn
    radius = (-2 * torch.log(_unit((bits >> 32) & 0xFFFFFFFF))).sqrt()
    angle = 2 * math.pi * _unit(bits & 0xFFFFFFFF)
    pair = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pair.view(*key.shape, length, 2 * half)[..., :dim]
