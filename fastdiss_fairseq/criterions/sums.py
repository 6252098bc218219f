"""What criteria log, summed."""

from typing import Any, Dict, List

import torch
from torch import Tensor


def total(logging_outputs: List[Dict[str, Any]]) -> Dict[str, float]:
    """The sum of each number that batches logged, fetched from the device all at once; larger tensors are left out."""
    sums = {name: sum(log.get(name, 0) for log in logging_outputs) for name in logging_outputs[0]}
    fetched = {name: value for name, value in sums.items() if isinstance(value, Tensor)}
    numbers = {name: value.double() for name, value in fetched.items() if value.dim() == 0}
    found = {name: value for name, value in sums.items() if name not in fetched}
    if numbers:
        found.update(zip(numbers, torch.stack(list(numbers.values())).tolist()))
    return found
