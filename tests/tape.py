"""Recordings as CUDA graphs make them, where there is no GPU: the operators of one call, done again on the same memory.

Whatever the host decided or computed at the first call stays as it was.  It cannot show what a GPU's kernels compute, nor how
fast; that the host asks for no value of the device, :mod:`pretend_device` shows.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdiss_fairseq.modules.graphs import Recording


class Tape(TorchDispatchMode):
    """The operators of what is done while entered, each with its arguments and results."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        results = operator(*arguments, **(options or {}))
        aliases = [argument.alias_info for argument in operator._schema.arguments if argument.alias_info is not None]
        if not aliases or any(alias.is_write for alias in aliases):  # not what only views
            new = [] if aliases else [x for x in tree_leaves(results) if isinstance(x, torch.Tensor)]
            self.calls.append((operator, arguments, options or {}, new))
        return results

    @property
    def made(self):
        return [x for *_, new in self.calls for x in new]

    def play(self):
        for operator, arguments, options, new in self.calls:
            again = operator(*arguments, **options)
            for there, here in zip(new, tree_leaves(again)):
                there.copy_(here)


class Taped:
    """Records on tapes, of which each overwrites what others computed, as recordings that share their memory do."""

    def __init__(self):
        self.count, self.last = 0, None

    def __call__(self, function, inputs):
        with torch.inference_mode(False), torch.no_grad():
            own = [x.clone() for x in inputs]
            torch.clear_autocast_cache()
            with Tape() as tape:
                outputs = function(*own)
            torch.clear_autocast_cache()
        self.count += 1

        def replay():
            with torch.inference_mode(False), torch.no_grad():
                for there in (self.last or tape).made:
                    there.zero_()
                tape.play()
                self.last = tape

        return Recording(own, outputs, replay)
