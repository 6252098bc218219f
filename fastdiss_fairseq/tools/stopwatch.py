"""The share of a run that is spent in each of its parts: functions are timed where they are called from."""

from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import Callable, Dict, Iterator, Tuple

import torch

from ..diffusion import mask_predict
from ..generation import continuous
from ..models import fastdiss
from ..models.base import FewStepModel
from ..models.fastdiss import FastDiSSModel
from ..modules.length import LengthPredictor
from ..modules.target import TargetNetwork

#: What is timed, part -> (owner, function); none of a kind is called within another.
Parts = Dict[str, Tuple[object, str]]
DECODING: Parts = {
    "encoder and memory": (FewStepModel, "encode"),
    "lengths": (LengthPredictor, "top"),
    "embedding table": (FastDiSSModel, "table"),
    "noise": (mask_predict, "gaussian"),
    "times": (FastDiSSModel, "time_inputs"),
    "denoiser": (FastDiSSModel, "denoise"),
    "vocabulary": (continuous, "read"),
}
TRAINING: Parts = {
    "encoder and memory": (FewStepModel, "encode"),
    "shared positions": (TargetNetwork, "target"),
    "times": (FastDiSSModel, "time_inputs"),
    "denoiser": (FastDiSSModel, "denoise"),
    "expected embeddings": (FastDiSSModel, "refine"),
    "correct tokens (MANS)": (fastdiss, "nearest_token"),
    "rounding loss": (fastdiss, "rounding_loss"),
}


def timed(function: Callable, name: str, seconds: Counter, clock: Callable[[], float]) -> Callable:
    """``function``, which adds its seconds to those of ``name``; calls that gradients will flow through count apart."""

    def run(*arguments, **options):
        started = clock()
        try:
            return function(*arguments, **options)
        finally:
            apart = f"{name}, for gradients" if torch.is_grad_enabled() else name
            seconds[apart] += clock() - started

    return run


@contextmanager
def stopwatch(parts: Parts, clock: Callable[[], float]) -> Iterator[Counter]:
    """Seconds of each part while entered; ``clock`` waits for the device, so that a part's work is its own."""
    seconds: Counter = Counter()
    with ExitStack() as stack:
        for name, (owner, attribute) in parts.items():
            original = getattr(owner, attribute)
            stack.callback(setattr, owner, attribute, original)
            setattr(owner, attribute, timed(original, name, seconds, clock))
        yield seconds
