"""Grids of decoding times."""

from typing import List


def uniform_grid(steps: int) -> List[float]:
    """K + 1 equidistant times 1 = t_K > ... > t_1 > t_0 = 0.

    The network is evaluated at t_K, ..., t_1, so exactly K times.

    Raises:
        ValueError: ``steps`` < 1.
    """
    if steps < 1:
        raise ValueError(f"the number of decoding steps must be at least 1, not {steps}")
    return [i / steps for i in range(steps, -1, -1)]
