"""The places where a mask is True."""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Optional

import torch
from torch import Tensor


_fixed: ContextVar[bool] = ContextVar("fixed", default=False)


@contextmanager
def fixed_sizes():
    """Within it no size depends on a mask's values: what counts at some places is computed at all of them.  The host then
    waits for nothing, and the same kernels serve all inputs of these shapes."""
    token = _fixed.set(True)
    try:
        yield
    finally:
        _fixed.reset(token)


class Places(NamedTuple):
    """Where a mask is True: ``index`` (N,) into the flattened mask, and the mask's ``shape``.  Under :func:`fixed_sizes`
    there is no index, but the ``mask``, and N counts all places.

    On a GPU the host must wait to learn N, for each use of a mask as an index anew.  So places are found once, and before the
    device is given much to do.
    """

    index: Optional[Tensor]
    shape: torch.Size
    mask: Optional[Tensor] = None

    @classmethod
    def of(cls, mask: Tensor) -> "Places":
        if _fixed.get():
            return cls(None, mask.shape, mask)
        return cls(mask.flatten().nonzero().squeeze(1), mask.shape)

    def take(self, x: Tensor) -> Tensor:
        """The values (N, ...) that x (*shape, ...) has there."""
        flat = x.flatten(0, len(self.shape) - 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def replace(self, x: Tensor, values: Tensor) -> Tensor:
        """x (*shape, ...) with values (N, ...) there."""
        if self.index is None:
            mask = self.mask.view(*self.shape, *[1] * (x.dim() - len(self.shape)))
            return torch.where(mask, values.view(x.shape), x)
        return x.flatten(0, len(self.shape) - 1).index_copy(0, self.index, values).view(x.shape)

    def put(self, values: Tensor, elsewhere: float = 0) -> Tensor:
        """(*shape, ...) with values (N, ...) there, and one value elsewhere."""
        return self.replace(values.new_full((*self.shape, *values.shape[1:]), elsewhere), values)
