"""Functions of tensors as CUDA graphs.

A GPU takes less time for the kernels of a small batch than the host takes to launch them one by one; a graph is launched
as a whole.  Its kernels are those of one call, on the same memory, so it serves inputs of the same shapes, which are copied
there, and everything else that the function reads must stay where it is.
"""

from collections import OrderedDict
from typing import Callable, Hashable, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .places import fixed_sizes

#: Recordings that are kept, the last used.
KEPT = 128
Function = Callable[..., Tuple[Tensor, ...]]


class Recording(NamedTuple):
    """``replay()`` computes ``outputs`` from ``inputs``, in place."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    replay: Callable[[], None]


class Graphs:
    """Recordings of functions for the shapes that they were called with.

    Args:
        record: makes a :class:`Recording` of a function and example inputs.
    """

    def __init__(self, record: Optional[Callable[[Function, Sequence[Tensor]], Recording]] = None):
        self.record = record or Recorder()
        self.recordings: OrderedDict[Hashable, Recording] = OrderedDict()

    def __call__(self, name: Hashable, function: Function, *inputs: Tensor) -> Sequence[Tensor]:
        """``function(*inputs)``, which is computed without regard to what sizes could depend on the inputs'
        values.  The results are overwritten by the next call of this name and these shapes.

        Args:
            name: equal for functions that do the same.
        """
        key = name, tuple(x.shape for x in inputs)
        if key not in self.recordings:
            with fixed_sizes():
                self.recordings[key] = self.record(function, inputs)
            while len(self.recordings) > KEPT:
                self.recordings.popitem(last=False)
        self.recordings.move_to_end(key)
        found = self.recordings[key]
        for there, here in zip(found.inputs, inputs):
            there.copy_(here)
        found.replay()
        return found.outputs


class Recorder:
    """Records on the current GPU; all recordings share the memory of what they compute on the way."""

    def __init__(self):
        self.pool = None

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
        graph, own = torch.cuda.CUDAGraph(), [x.clone() for x in inputs]
        with torch.cuda.device(own[0].device):
            before, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(before)
            with torch.cuda.stream(aside):
                function(*own)  # libraries make themselves ready, which cannot be recorded
            before.wait_stream(aside)
            torch.clear_autocast_cache()  # its weights are not the graph's
            with torch.cuda.graph(graph, pool=self.pool):
                outputs = function(*own)
            torch.clear_autocast_cache()  # nor are the graph's, which have no values yet, anyone else's
            self.pool = self.pool or graph.pool()
        return Recording(own, outputs, graph.replay)
