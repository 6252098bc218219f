"""How many operators a computation takes: small models are bound by their number on a GPU, which is launched for each."""

from typing import Callable, Optional

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Counts operators that compute or copy; those that only view are left out, and what numpy computes on a CPU: keys of
    the noise."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        aliases = (argument.alias_info for argument in operator._schema.arguments)
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return operator(*args, **(kwargs or {}))


def operators(run: Callable[[object], object], batch) -> Optional[int]:
    """The number that ``run(batch)`` takes on its device; some devices have one where others have several.  None with
    torch before 1.13, which cannot tell."""
    if not hasattr(TorchDispatchMode, "__enter__"):
        return None
    with Operators() as counted:
        run(batch)
    return counted.count
