"""A second device to test on where there is none: ``torch.device("pretend")``.

Its tensors are computed on the CPU, but like a GPU's they refuse to meet the CPU's: an operation on tensors of both is an
error, and what makes the host wait for the device is counted.  It cannot show what a GPU's kernels compute, nor how fast.
"""

from collections import Counter
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

NAME = "pretend"
FIRST = f"{NAME}:0"

#: Operations that ask for a value, or for a size that depends on values.
WAITS = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2", "unique_consecutive")

_waits: Counter = Counter()


class Far(torch.Tensor):
    """A tensor on the pretended device; ``near`` holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near):
        layout = dict(strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype)
        far = torch.Tensor._make_wrapper_subclass(cls, near.size(), device=FIRST, **layout)
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        return _run(operation, arguments, options or {})

    def __repr__(self, **_):
        return f"{FIRST} {self.near}"


def _run(operation, arguments, options):
    """Do on the CPU what is asked of the device."""
    name = operation.overloadpacket.__name__
    tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
    far = [x for x in tensors if isinstance(x, Far)]
    strangers = [x for x in tensors if not isinstance(x, Far) and x.dim() > 0]
    if far and strangers and name != "copy_":
        raise RuntimeError(f"{name}: tensors on two devices, {FIRST} and {strangers[0].device}")
    to_host = options.get("device") is not None and torch.device(options["device"]).type == "cpu"
    if name in WAITS or to_host or (name == "copy_" and strangers) or _reads_mask(name, arguments):
        _waits[name] += 1
    if "device" in options:
        options = {**options, "device": torch.device("cpu")}
    found = operation(*tree_map(_near, arguments), **tree_map(_near, options))
    if to_host:
        return found.clone()
    known = {id(_near(x)): x for x in tensors}  # what was changed in place
    return tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else Far(x), found)


def _near(x):
    return x.near if isinstance(x, Far) else x


def _reads_mask(name, arguments):
    """Indexing by a mask asks how many are True."""
    indexes = "index" in name and len(arguments) > 1
    return indexes and any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(arguments[1]))


def available() -> bool:
    """Whether this torch can pretend, and there is no GPU: torch would take the pretended one for that."""
    return not torch.cuda.is_available() and hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def register() -> None:
    """Make the device known; once a process."""
    if not hasattr(register, "library"):
        module = backend_registration._DummyBackendModule()
        module.get_amp_supported_dtype = lambda: [torch.bfloat16]
        module.is_available = lambda: False  # nobody is to use it unasked: other tests run in the same process
        backend_registration._setup_privateuseone_for_python_backend(NAME, module)
        register.library = torch.library.Library("_", "IMPL")
        register.library.fallback(lambda operation, *a, **k: _run(operation, a, k), "PrivateUse1")


class _FromPython(TorchFunctionMode):
    """What torch itself would not take to such a device: tensors made of Python's values, and back."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        if function is torch.Tensor.tolist:
            return function(arguments[0].cpu())
        if function not in (torch.tensor, torch.as_tensor, torch.arange) or options.get("device") is None:
            return function(*arguments, **options)
        device = torch.device(options.pop("device"))
        made = function(*arguments, **options)
        computed_there = function is torch.arange and device.type == NAME
        return Far(made) if computed_there else made.to(device)


@contextmanager
def waits():
    """Counts, by operation, how often the host waits for the device."""
    _waits.clear()
    with _FromPython(), torch.autograd.set_multithreading_enabled(False):
        yield _waits


def send(x):
    """Tensors and batches on the device, or a module, in place."""
    if not isinstance(x, torch.nn.Module):
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(FIRST), x)
    sent = {}
    for module in x.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                there = sent.setdefault(id(parameter), torch.nn.Parameter(parameter.detach().to(FIRST)))
                module._parameters[name] = there.requires_grad_(parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.to(FIRST)
    return x
