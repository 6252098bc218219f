import math

import pytest
import torch

from fastdiss_fairseq.diffusion.process import Process
from fastdiss_fairseq.diffusion.schedules import SCHEDULES

FACTORS = (0.5, 1.0, 4.0)
GRID = torch.linspace(0, 1, 501, dtype=torch.float64)
every_process = pytest.mark.parametrize("process", [Process(s, f) for s in SCHEDULES for f in FACTORS], ids=str)


@every_process
def test_time_inverts_log_snr(process):
    assert torch.allclose(process.time(process.log_snr(GRID)), GRID, atol=1e-5, rtol=0)


@every_process
def test_time_inverts_log_snr_in_single_precision(process):
    t = GRID.float()
    assert torch.allclose(process.time(process.log_snr(t)), t, atol=1e-4, rtol=0)


@every_process
def test_log_snr_falls_strictly_between_finite_ends(process):
    log_snr = process.log_snr(GRID)
    assert torch.isfinite(log_snr).all()
    assert (log_snr.diff() < 0).all()


@every_process
def test_log_snr_is_that_of_alpha_and_sigma(process):
    ratio = 2 * (process.alpha(GRID).log() - process.sigma(GRID).log())
    assert torch.allclose(process.log_snr(GRID), ratio, atol=1e-9)


@every_process
def test_variance_is_preserved_up_to_the_noise_factor(process):
    total = process.alpha(GRID) ** 2 + (process.sigma(GRID) / process.noise_factor) ** 2
    assert torch.allclose(total, torch.ones_like(GRID), atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("factor", FACTORS)
def test_noise_factor_shifts_the_log_snr(schedule, factor):
    shifted = Process(schedule, 1.0).log_snr(GRID) - 2 * math.log(factor)
    assert torch.allclose(Process(schedule, factor).log_snr(GRID), shifted, atol=1e-12)


@every_process
def test_input_scale_is_the_best_linear_estimate_of_z_0(process):
    """Where z_0 has variance 1, E[(c z_t - z_0)^2] is least at c, and c z_t has the variance c alpha."""
    alpha, variance = process.alpha(GRID), process.alpha(GRID) ** 2 + process.sigma(GRID) ** 2
    error = lambda c: c**2 * variance - 2 * c * alpha + 1
    scale = process.input_scale(GRID)
    for other in (0.9, 1.1):
        assert (error(scale) < error(other * scale)).all()
    assert torch.allclose(scale**2 * variance, scale * alpha, atol=1e-12)


def test_unknown_schedule_names_the_known_ones():
    with pytest.raises(ValueError, match="'quadratic'.*sqrt.*cosine.*linear"):
        Process("quadratic")


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_noise_factor_must_be_positive(factor):
    with pytest.raises(ValueError, match="noise factor must be positive and finite"):
        Process("sqrt", factor)


DRAWS = 200_000


def assert_gaussian(sample, mean, variance):
    """Mean and variance within five standard errors."""
    n = sample.numel()
    assert abs(sample.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(sample.var() - variance) < 5 * variance * math.sqrt(2 / n)


@every_process
def test_diffuse_has_mean_and_variance_of_the_process(process):
    noise = torch.randn(1, DRAWS, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([[0.3]], dtype=torch.float64)
    z_t = process.diffuse(torch.full((1, DRAWS, 1), 2.0, dtype=torch.float64), t, noise)
    assert_gaussian(z_t, 2 * process.alpha(t).item(), process.sigma(t).item() ** 2)


@every_process
@pytest.mark.parametrize("later", [0.35, 0.8, 1.0])
def test_diffuse_further_lands_on_the_process_at_the_later_time(process, later):
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 1, DRAWS, 1, generator=generator, dtype=torch.float64)
    t, later = (torch.tensor([[value]], dtype=torch.float64) for value in (0.3, later))
    z_t = process.diffuse(torch.full((1, DRAWS, 1), 2.0, dtype=torch.float64), t, first)
    z_later = process.diffuse_further(z_t, t, later, second)
    assert_gaussian(z_later, 2 * process.alpha(later).item(), process.sigma(later).item() ** 2)


@every_process
def test_diffuse_further_by_nothing_changes_nothing(process):
    z_t = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([[0.0], [0.4], [1.0]], dtype=torch.float64)
    further = process.diffuse_further(z_t, t, t, torch.ones_like(z_t))
    assert torch.allclose(further, z_t, atol=1e-6)


def test_diffuse_takes_a_time_for_each_token():
    process = Process("cosine", 2.0)
    z_0, noise = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(4))
    t = torch.tensor([[0.1, 0.5, 0.9], [0.0, 0.3, 1.0]])
    together = process.diffuse(z_0, t, noise)
    for i in range(3):
        column = process.diffuse(z_0[:, i : i + 1], t[:, i : i + 1], noise[:, i : i + 1])
        assert torch.equal(together[:, i : i + 1], column)
