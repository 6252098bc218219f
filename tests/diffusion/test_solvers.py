import math

import pytest
import torch

from fastdiss_fairseq.diffusion.process import Process
from fastdiss_fairseq.diffusion.solvers import SOLVERS, Step, ddim, ddpm, dpmpp_2m, renoise

MEAN, SPREAD = 0.7, 0.5  # the data are N(MEAN, SPREAD^2)
START, END = 0.9, 0.15  # well inside (0, 1), where the schedules are smooth
DRAWS = 200_000

every_process = pytest.mark.parametrize(
    "process", [Process("cosine", 1.0), Process("cosine", 4.0), Process("linear", 2.0), Process("sqrt", 4.0)], ids=str
)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def no_noise():
    raise AssertionError("a deterministic solver drew noise")


def normal(seed):
    return torch.randn(DRAWS, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def denoise_gaussian(z, t, process):
    """E[z_0 | z_t] of Gaussian data: the exact denoiser."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return MEAN + gain * (z - alpha * MEAN)


def flow(z, t, s, process):
    """The exact probability flow from t to s: standardised z_t is constant along it."""

    def deviation(u):
        return (process.alpha(u) ** 2 * SPREAD**2 + process.sigma(u) ** 2).sqrt()

    return process.alpha(s) * MEAN + deviation(s) / deviation(t) * (z - process.alpha(t) * MEAN)


def integrate(solver, process, steps):
    """The error of a solver after ``steps`` steps from START to END."""
    times = [scalar(START + (END - START) * i / steps) for i in range(steps + 1)]
    start = torch.tensor([[-1.5], [0.4], [2.0]], dtype=torch.float64)
    z, previous = start, None
    for t, s in zip(times, times[1:]):
        estimate = denoise_gaussian(z, t, process)
        z = solver(Step(z, estimate, t, s, process, no_noise, previous))
        previous = (estimate, t)
    return (z - flow(start, times[0], times[-1], process)).abs().max().item()


@every_process
@pytest.mark.parametrize("solver, order", [(ddim, 1), (dpmpp_2m, 2)])
def test_order_of_convergence_to_the_probability_flow(solver, order, process):
    counts = [40, 80, 160, 320]
    errors = [integrate(solver, process, steps) for steps in counts]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    assert slopes[-1] == pytest.approx(order, abs=0.15), (errors, slopes)
    assert errors[-1] < 10.0 ** (-1 - order)


@every_process
def test_second_order_beats_first_order_at_few_steps(process):
    assert integrate(dpmpp_2m, process, 20) < integrate(ddim, process, 20) / 2


@every_process
def test_first_step_of_dpmpp_is_ddim(process):
    z, estimate = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = Step(z, estimate, scalar(0.8), scalar(0.3), process, no_noise)
    assert torch.allclose(dpmpp_2m(step), ddim(step), atol=1e-10)


@every_process
def test_later_steps_of_dpmpp_extrapolate_in_log_snr(process):
    """Where the estimate is linear in the half log-SNR, the extrapolated estimate is the one half a step ahead."""
    r, t, s = scalar(0.9), scalar(0.7), scalar(0.4)
    line = lambda half_log_snr: 0.3 + 0.2 * half_log_snr
    at = lambda u: process.log_snr(u) / 2
    z = torch.ones(1, 1, dtype=torch.float64)
    found = dpmpp_2m(Step(z, line(at(t)) * z, t, s, process, no_noise, (line(at(r)) * z, r)))
    expected = ddim(Step(z, line((at(t) + at(s)) / 2) * z, t, s, process, no_noise))
    assert torch.allclose(found, expected, atol=1e-12)


@every_process
@pytest.mark.parametrize("solver", [ddim, dpmpp_2m])
@pytest.mark.parametrize("s", [0.9, 0.5, 0.0])
def test_point_mass_one_deterministic_step_is_exact(solver, s, process):
    """With the exact estimate a step of any size lands on z_s with the same noise."""
    z_0 = torch.full((1, 4, 2), 1.3, dtype=torch.float64)
    noise = torch.randn(1, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t, s = scalar(1.0), scalar(s)
    z_t = process.diffuse(z_0, t.view(1, 1), noise)
    z_s = solver(Step(z_t, z_0, t, s, process, no_noise))
    assert torch.allclose(z_s, process.diffuse(z_0, s.view(1, 1), noise), atol=1e-9)


def covariance(a, b):
    return ((a - a.mean()) * (b - b.mean())).mean().item()


@every_process
@pytest.mark.parametrize("t, s", [(1.0, 0.5), (0.5, 0.4), (0.3, 0.0)])
def test_point_mass_stochastic_steps_have_the_joint_distribution_of_the_process(t, s, process):
    """DDPM draws from q(z_s, z_t | z_0); re-noise from q(z_s | z_0), independent of z_t."""
    z_0, t, s = torch.full((DRAWS, 1), 1.3, dtype=torch.float64), scalar(t), scalar(s)
    z_t = process.diffuse(z_0.unsqueeze(0), t.view(1, 1), normal(3).unsqueeze(0))[0]
    alpha, variance = process.alpha(s).item(), process.sigma(s).item() ** 2
    scale = math.sqrt(variance) * process.sigma(t).item() / math.sqrt(DRAWS)
    for solver, expected in ((ddpm, (process.alpha(t) / process.alpha(s) * variance).item()), (renoise, 0.0)):
        z_s = solver(Step(z_t, z_0, t, s, process, lambda: normal(4)))
        assert abs(z_s.mean().item() - 1.3 * alpha) < 5 * math.sqrt(variance / DRAWS)
        assert abs(z_s.var().item() - variance) < 5 * variance * math.sqrt(2 / DRAWS)
        assert abs(covariance(z_s, z_t) - expected) < 5 * 1.5 * scale


@every_process
def test_renoise_forgets_the_noise_of_z_t(process):
    """Its variance is that of the estimate and of the noise at s; nothing of z_t is left over."""
    t, s = scalar(0.9), scalar(0.5)
    data = MEAN + SPREAD * normal(5)
    z_t = process.diffuse(data.unsqueeze(0), t.view(1, 1), normal(6).unsqueeze(0))[0]
    estimate = denoise_gaussian(z_t, t, process)
    z_s = renoise(Step(z_t, estimate, t, s, process, lambda: normal(7)))
    expected = (process.alpha(s) ** 2 * estimate.var() + process.sigma(s) ** 2).item()
    assert abs(z_s.var().item() - expected) < 5 * expected * math.sqrt(2 / DRAWS)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_steps_keep_shape_and_single_precision(solver):
    z, estimate, noise = torch.randn(3, 2, 3, 5, 4, generator=torch.Generator().manual_seed(8))
    previous = (estimate + 1, scalar(0.75))
    found = solver(Step(z, estimate, scalar(0.5), scalar(0.25), Process(), lambda: noise, previous))
    assert found.shape == z.shape and found.dtype == torch.float32 and torch.isfinite(found).all()
