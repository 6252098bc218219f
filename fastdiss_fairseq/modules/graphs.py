"""Functions of tensors as CUDA graphs.

A GPU takes less time for the kernels of a small batch than the host takes to launch them one by one; a graph is launched
as a whole.  Its kernels are those of one call, on the same memory, so it serves inputs of the same shapes, which are copied
there, and everything else that the function reads must stay where it is.
"""

import threading
from collections import OrderedDict
from typing import Callable, Hashable, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from ..compat import capture
from ..errors import FastDiSSError
from .places import fixed_sizes

Function = Callable[..., Tuple[Tensor, ...]]


def capacity(device: torch.device) -> float:
    """Bytes of inputs and outputs beyond which recordings are given up, the longest unused first: a sixteenth of a GPU's."""
    return torch.cuda.get_device_properties(device).total_memory / 16 if device.type == "cuda" else float("inf")


class Recording(NamedTuple):
    """``replay()`` computes ``outputs`` from ``inputs``, in place."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    replay: Callable[[], None]

    @property
    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (*self.inputs, *self.outputs))


class Graphs:
    """Recordings of functions for the shapes that they were called with; copies begin without any.

    Args:
        recorder: makes what makes a :class:`Recording` of a function and example inputs.

    Whoever uses results holds the ``lock``, from the call until they are copied or no longer needed, and works on the same
    stream as all others.
    """

    def __init__(self, recorder: Callable[[], Callable[[Function, Sequence[Tensor]], Recording]]):
        self.recorder, self.record, self.lock = recorder, recorder(), threading.RLock()
        self.recordings: OrderedDict[Hashable, Recording] = OrderedDict()

    def __reduce__(self):
        return Graphs, (self.recorder,)

    def anew(self) -> "Graphs":
        """The same without recordings, for when what the functions read has moved."""
        return Graphs(self.recorder)

    def __call__(self, name: Hashable, function: Function, *inputs: Tensor) -> Sequence[Tensor]:
        """``function(*inputs)``, which is computed without regard to what sizes could depend on the inputs'
        values.  The results are overwritten by the next call, of whatever name.

        Args:
            name: equal for functions that do the same.
        """
        key = name, tuple(x.shape for x in inputs)
        with self.lock:
            if key not in self.recordings:
                with fixed_sizes():
                    self.recordings[key] = self.record(function, inputs)
                self._forget(capacity(inputs[0].device))
            self.recordings.move_to_end(key)
            found = self.recordings[key]
            for there, here in zip(found.inputs, inputs):
                there.copy_(here)
            found.replay()
            return found.outputs

    def _forget(self, most: float) -> None:
        """Give up recordings, but never the last one: the others' memory belongs to it, too."""
        held = sum(recording.bytes for recording in self.recordings.values())
        while held > most and len(self.recordings) > 1:
            held -= self.recordings.popitem(last=False)[1].bytes


class Recorder:
    """Records on the GPU that the inputs are on; all recordings share the memory of what they compute on the way."""

    def __init__(self):
        self.pool = self.stream = None

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
        device = inputs[0].device
        if device.type != "cuda":
            raise FastDiSSError("CUDA graphs need a GPU")
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
            own, before = [x.clone() for x in inputs], torch.cuda.current_stream()
            self.stream = self.stream or torch.cuda.Stream()
            self.stream.wait_stream(before)
            with torch.cuda.stream(self.stream):
                function(*own)  # libraries make themselves ready, which cannot be recorded
            before.wait_stream(self.stream)
            torch.clear_autocast_cache()  # its weights are not the graph's
            with capture(graph, pool=self.pool, stream=self.stream):
                outputs = function(*own)
            torch.clear_autocast_cache()  # nor are the graph's, which have no values yet, anyone else's
            self.pool = self.pool or graph.pool()
        return Recording(own, outputs, graph.replay)
