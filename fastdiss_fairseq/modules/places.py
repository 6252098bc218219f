"""The places where a mask is True."""

from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Where a mask is True: ``index`` (N,) into the flattened mask, and the mask's ``shape``.

    On a GPU the host must wait to learn N, for each use of a mask as an index anew.  So places are found once, and before the
    device is given much to do.
    """

    index: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, mask: Tensor) -> "Places":
        return cls(mask.flatten().nonzero().squeeze(1), mask.shape)

    def take(self, x: Tensor) -> Tensor:
        """The values (N, ...) that x (*shape, ...) has there."""
        return x.flatten(0, len(self.shape) - 1).index_select(0, self.index)

    def replace(self, x: Tensor, values: Tensor) -> Tensor:
        """x (*shape, ...) with values (N, ...) there."""
        return x.flatten(0, len(self.shape) - 1).index_copy(0, self.index, values).view(x.shape)

    def put(self, values: Tensor, elsewhere: float = 0) -> Tensor:
        """(*shape, ...) with values (N, ...) there, and one value elsewhere."""
        return self.replace(values.new_full((*self.shape, *values.shape[1:]), elsewhere), values)
