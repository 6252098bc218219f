import math

import pytest
import torch

from fastdiss_fairseq.diffusion.process import Process
from fastdiss_fairseq.diffusion.schedules import EPSILON, SCHEDULES, alpha_bar, time_of_alpha_bar

GRID = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_inverts_alpha_bar(schedule):
    assert torch.allclose(time_of_alpha_bar(schedule, alpha_bar(schedule, GRID)), GRID, atol=1e-5, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alpha_bar_falls_strictly_and_stays_inside_the_open_interval(schedule):
    signal = alpha_bar(schedule, GRID)
    assert (signal.diff() < 0).all()
    assert EPSILON <= signal[-1] < 1e-3 and 1 - 0.011 < signal[0] <= 1 - EPSILON


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("value, end", [(0.0, 1.0), (EPSILON, 1.0), (1 - EPSILON, 0.0), (1.0, 0.0)])
def test_time_is_clipped_where_no_time_has_the_value(schedule, value, end):
    found = time_of_alpha_bar(schedule, torch.tensor(value, dtype=torch.float64))
    assert found == pytest.approx(end, abs=0.02)
    assert 0 <= found <= 1


def test_published_formulas():
    """Away from the ends the schedules are those of the papers, up to the offsets."""
    t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    assert torch.allclose(alpha_bar("sqrt", t), 1 - (t + 1e-4).sqrt(), atol=2e-4)
    assert torch.allclose(alpha_bar("linear", t), torch.exp(-0.1 * t - 19.9 * t**2 / 2), atol=2e-4)
    cosine = (torch.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    assert torch.allclose(alpha_bar("cosine", t), cosine, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_low_precision_times_are_computed_in_double(schedule, dtype):
    t = torch.tensor([0.0, 0.125, 0.5, 1.0], dtype=dtype)
    process = Process(schedule, 4.0)
    exact = process.log_snr(t.double())
    assert process.log_snr(t).dtype == dtype
    assert torch.equal(process.log_snr(t), exact.to(dtype))
    assert torch.isfinite(process.log_snr(t)).all()
