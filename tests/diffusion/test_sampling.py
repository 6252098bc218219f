import math
from dataclasses import replace

import pytest
import torch

from fastdiss_fairseq.diffusion.noise import fold
from fastdiss_fairseq.diffusion.process import Process
from fastdiss_fairseq.diffusion.sampling import SELF_CONDITIONING, Sampler, sample
from fastdiss_fairseq.diffusion.schedules import SCHEDULES
from fastdiss_fairseq.diffusion.solvers import SOLVERS
from fastdiss_fairseq.diffusion.times import uniform_grid

SHAPE = (5, 4)
KEY = fold(torch.arange(6).view(3, 2), "test")
TRAINED = Process("sqrt", 4.0)
PLAIN = Sampler(TRAINED, noise_factor=4.0, told_noise_factor=4.0)
every_solver = pytest.mark.parametrize("solver", SOLVERS)


class Recorder:
    """A denoiser that notes what it is called with and estimates something that depends on all of it."""

    def __init__(self):
        self.inputs, self.times, self.conditions, self.rows = [], [], [], []

    def __call__(self, z, t, z_bar, rows):
        self.inputs.append(z), self.times.append(float(t)), self.conditions.append(z_bar), self.rows.append(rows)
        return torch.tanh(z * (1 - 0.5 * t) + 0.3 * z_bar + 0.1 * rows.view(-1, 1, 1, 1))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("self_conditioning, each", [("previous", 1), ("none", 1), ("recompute", 2)])
@every_solver
def test_number_of_evaluations(steps, self_conditioning, each, solver):
    denoise = Recorder()
    sampler = replace(PLAIN, solver=solver, self_conditioning=self_conditioning)
    drawn = sample(denoise, KEY, SHAPE, steps, sampler)
    assert len(denoise.times) == steps * each
    assert drawn.steps.tolist() == [steps] * 3
    assert drawn.estimate.shape == (3, 2, *SHAPE) and torch.isfinite(drawn.estimate).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_times_fall_from_one_to_the_last_grid_point_before_zero(steps):
    denoise = Recorder()
    sample(denoise, KEY, SHAPE, steps, PLAIN)
    assert denoise.times == pytest.approx([i / steps for i in range(steps, 0, -1)], abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_uniform_grid(steps):
    assert uniform_grid(steps) == [i / steps for i in range(steps, -1, -1)]


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_is_an_error(steps):
    with pytest.raises(ValueError, match="at least 1"):
        uniform_grid(steps)
    with pytest.raises(ValueError, match="at least 1"):
        sample(Recorder(), KEY, SHAPE, steps, PLAIN)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_start_is_pure_noise_of_decodings_noise_factor(temperature):
    denoise = Recorder()
    key = fold(torch.arange(2000).view(1000, 2), "many")
    sample(denoise, key, SHAPE, 1, replace(PLAIN, noise_factor=2.0, temperature=temperature))
    z = denoise.inputs[0]
    assert denoise.times == [1.0]
    deviation = 2 * temperature
    assert abs(z.mean()) <= 5 * deviation / math.sqrt(z.numel())
    assert abs(z.std() - deviation) <= 5 * deviation / math.sqrt(2 * z.numel()) + 1e-4 * deviation


def test_temperature_zero_is_deterministic_with_deterministic_solvers():
    sampler = replace(PLAIN, temperature=0.0, solver="ddim", self_conditioning="none")
    denoise = lambda z, t, z_bar, rows: torch.tanh(z + 0.2)
    drawn = sample(denoise, KEY, SHAPE, 4, sampler).estimate
    assert torch.equal(drawn, drawn[:1, :1].expand_as(drawn))


def test_previous_conditions_on_the_last_estimate():
    denoise = Recorder()
    outputs = []
    keep = lambda *args: outputs.append(denoise(*args)) or outputs[-1]
    drawn = sample(keep, KEY, SHAPE, 3, PLAIN)
    assert not denoise.conditions[0].any()
    assert torch.equal(denoise.conditions[1], outputs[0]) and torch.equal(denoise.conditions[2], outputs[1])
    assert torch.equal(drawn.estimate, outputs[2])


def test_recompute_conditions_on_an_estimate_at_the_same_time_and_input():
    denoise = Recorder()
    outputs = []
    keep = lambda *args: outputs.append(denoise(*args)) or outputs[-1]
    drawn = sample(keep, KEY, SHAPE, 2, replace(PLAIN, self_conditioning="recompute"))
    assert denoise.times == [1.0, 1.0, 0.5, 0.5]
    for first, second in ((0, 1), (2, 3)):
        assert torch.equal(denoise.inputs[first], denoise.inputs[second])
        assert not denoise.conditions[first].any()
        assert torch.equal(denoise.conditions[second], outputs[first])
    assert torch.equal(drawn.estimate, outputs[3])


def test_none_never_conditions():
    denoise = Recorder()
    sample(denoise, KEY, SHAPE, 3, replace(PLAIN, self_conditioning="none"))
    assert not torch.stack(denoise.conditions).any()


@every_solver
def test_point_mass_is_found_and_approached_along_the_process(solver):
    """With the exact denoiser of one z_0, z at every grid time is a sample of the process."""
    z_0 = torch.full(SHAPE, 0.8)
    key = fold(torch.arange(4000).view(2000, 2), "points")
    inputs = []
    denoise = lambda z, t, z_bar, rows: inputs.append((float(t), z)) or z_0.expand_as(z)
    sampler = replace(PLAIN, solver=solver, noise_factor=2.0)
    drawn = sample(denoise, key, SHAPE, 4, sampler)
    assert torch.equal(drawn.estimate, z_0.expand_as(drawn.estimate))
    for t, z in inputs[1:]:
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = sampler.process.alpha(time).item(), sampler.process.sigma(time).item()
        # the very first alpha is not quite 0 (EPSILON), the start is pure noise: hence the slack
        assert abs(z.mean() - 0.8 * alpha) < 5 * sigma / math.sqrt(z.numel()) + 3e-3
        assert abs(z.var() / sigma**2 - 1) < 5 * math.sqrt(2 / z.numel()) + 1e-3


@pytest.mark.parametrize("noise_factor", [1.0, 2.0, 4.0])
def test_told_trained_factor_is_the_grid_time_itself(noise_factor):
    sampler = replace(PLAIN, noise_factor=noise_factor)
    for t in uniform_grid(20):
        told, scale = sampler.told(torch.tensor(t, dtype=torch.float64))
        assert (told.item(), scale.item()) == (t, 1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("t", [1.0, 0.5, 0.2])
def test_told_decodings_factor_is_the_truth(schedule, factor, t):
    """The time told has the log-SNR of the state, and the scaled state fits training at that time."""
    trained = Process(schedule, 4.0)
    sampler = Sampler(trained, noise_factor=factor, told_noise_factor=factor)
    t = torch.tensor(t, dtype=torch.float64)
    told, scale = sampler.told(t)
    assert trained.log_snr(told).item() == pytest.approx(sampler.process.log_snr(t).item(), abs=2e-2)
    assert (scale * sampler.process.alpha(t)).item() == pytest.approx(trained.alpha(told).item(), rel=1e-2, abs=1e-6)
    assert (scale * sampler.process.sigma(t)).item() == pytest.approx(trained.sigma(told).item(), rel=1e-4)


def test_told_stays_in_the_trained_range():
    """Cleaner states than training has are told as t = 0."""
    told, scale = replace(PLAIN, noise_factor=0.1, told_noise_factor=0.1).told(torch.tensor(0.05).double())
    assert told == 0 and scale > 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_told_is_nearly_the_identity_for_nearly_the_trained_factor(schedule):
    sampler = Sampler(Process(schedule, 4.0), noise_factor=4.0, told_noise_factor=4.0 + 1e-9)
    for t in uniform_grid(10):
        told, scale = sampler.told(torch.tensor(t, dtype=torch.float64))
        assert told.item() == pytest.approx(t, abs=1e-5) and scale.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("told_factor, earlier", [(8.0, False), (2.0, True)])
def test_told_more_noise_is_a_later_time(told_factor, earlier):
    t = torch.tensor(0.5, dtype=torch.float64)
    told, _ = replace(PLAIN, told_noise_factor=told_factor).told(t)
    assert (told < t) == earlier and told != t


def test_denoiser_is_given_the_scaled_state_and_the_told_time():
    plain, told = Recorder(), Recorder()
    sample(plain, KEY, SHAPE, 1, replace(PLAIN, noise_factor=2.0))
    sampler = replace(PLAIN, noise_factor=2.0, told_noise_factor=2.0)
    sample(told, KEY, SHAPE, 1, sampler)
    time, scale = sampler.told(torch.ones((), dtype=torch.float64))
    assert told.times[0] == pytest.approx(time.item())
    assert torch.allclose(told.inputs[0], plain.inputs[0] * scale.float())


@every_solver
@pytest.mark.parametrize("self_conditioning", SELF_CONDITIONING)
def test_a_sentence_does_not_depend_on_the_others(solver, self_conditioning):
    sampler = replace(PLAIN, solver=solver, self_conditioning=self_conditioning)
    denoise = lambda z, t, z_bar, rows: torch.tanh(z * (1 - 0.5 * t) + 0.3 * z_bar)
    together = sample(denoise, KEY, SHAPE, 4, sampler).estimate
    for i in range(len(KEY)):
        assert torch.allclose(sample(denoise, KEY[i : i + 1], SHAPE, 4, sampler).estimate[0], together[i], atol=1e-6)
    backwards = sample(denoise, KEY.flip(0), SHAPE, 4, sampler).estimate
    assert torch.allclose(backwards.flip(0), together, atol=1e-6)


def test_candidates_and_steps_have_noise_of_their_own():
    denoise = Recorder()
    sample(denoise, KEY, SHAPE, 1, PLAIN)
    starts = denoise.inputs[0].flatten(0, 1).flatten(1)
    assert len(starts.unique(dim=0)) == KEY.numel()
    zero = lambda *args: denoise(*args) * 0
    denoise = Recorder()
    sample(zero, KEY, SHAPE, 4, replace(PLAIN, solver="renoise", noise_factor=1.0))
    sigma = [TRAINED.sigma(torch.tensor(t)).item() for t in (0.75, 0.5)]
    assert not torch.allclose(denoise.inputs[1] / sigma[0], denoise.inputs[2] / sigma[1], atol=1e-2)


def freezing(rows_after):
    """A denoiser whose sentence i ceases to change once it has been called rows_after[i] times."""
    calls = [0]

    def denoise(z, t, z_bar, rows):
        calls[0] += 1
        level = torch.tensor([min(calls[0], rows_after[i]) + 10.0 * i for i in rows.tolist()])
        return level.view(-1, 1, 1, 1).expand_as(z)

    return denoise


def round_to_integer(estimate, rows):
    return estimate[..., 0].round().long(), -estimate[..., 0]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "renoise"])
def test_early_exit_stops_each_sentence_by_itself(solver):
    sampler = replace(PLAIN, solver=solver)
    stopped = sample(freezing([1, 4, 2]), KEY, SHAPE, 8, sampler, round_to_integer, early_exit=True)
    full = sample(freezing([1, 4, 2]), KEY, SHAPE, 8, sampler, round_to_integer)
    assert stopped.steps.tolist() == [2, 5, 3] and full.steps.tolist() == [8, 8, 8]
    assert torch.equal(stopped.estimate, full.estimate)
    assert len(stopped.history) == 5 and len(full.history) == 8
    for a, b in zip(stopped.history, full.history):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.log_probs, b.log_probs)


def test_early_exit_calls_the_denoiser_for_the_running_sentences_only():
    denoise = Recorder()
    frozen = freezing([1, 4, 2])
    both = lambda *args: (denoise(*args), frozen(*args))[1]
    sample(both, KEY, SHAPE, 8, PLAIN, round_to_integer, early_exit=True)
    assert [rows.tolist() for rows in denoise.rows] == [[0, 1, 2], [0, 1, 2], [1, 2], [1], [1]]


@every_solver
def test_early_exit_does_not_disturb_the_running_sentences(solver):
    """The sentences that go on draw the noise and keep the estimates they would have without early exit."""
    sampler = replace(PLAIN, solver=solver)

    def denoise(z, t, z_bar, rows):
        moving = torch.tanh(z * (1 - 0.5 * t) + 0.3 * z_bar)
        return torch.where(rows.view(-1, 1, 1, 1) == 1, torch.ones_like(z), moving)

    fine = lambda estimate, rows: ((estimate[..., 0] * 1e6).long(), estimate[..., 0])
    stopped = sample(denoise, KEY, SHAPE, 5, sampler, fine, early_exit=True)
    full = sample(denoise, KEY, SHAPE, 5, sampler, fine)
    assert stopped.steps.tolist() == [5, 2, 5]
    assert torch.allclose(stopped.estimate, full.estimate, atol=1e-6)


def test_one_changing_candidate_keeps_its_sentence_running():
    def denoise(z, t, z_bar, rows):
        estimate = torch.zeros_like(z)
        estimate[:, 1] = float(t)
        return estimate

    read = lambda estimate, rows: ((estimate[..., 0] * 100).round().long(), estimate[..., 1])
    assert sample(denoise, KEY, SHAPE, 4, PLAIN, read, early_exit=True).steps.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"solver": "euler"}, "unknown solver 'euler'.*ddim"),
        ({"self_conditioning": "always"}, "unknown self-conditioning 'always'.*previous"),
        ({"noise_factor": 0.0}, "positive"),
        ({"told_noise_factor": -1.0}, "positive"),
        ({"temperature": -0.1}, "temperature at least 0"),
    ],
)
def test_sampler_errors(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **change)


def test_refined_estimates_go_to_the_solver_and_self_conditioning_and_not_into_the_result():
    """With every estimate refined to a constant, DDIM and self-conditioning see the constant alone."""
    denoise, constant = Recorder(), 0.25
    refine = lambda estimate, rows: torch.full_like(estimate, constant)
    drawn = sample(denoise, KEY, SHAPE, 3, replace(PLAIN, solver="ddim"), refine=refine)
    assert not denoise.conditions[0].any()
    assert all((z_bar == constant).all() for z_bar in denoise.conditions[1:])
    p = TRAINED
    t, s = (torch.tensor(x, dtype=torch.float64) for x in (1.0, 2 / 3))
    expected = p.alpha(s) * constant + p.sigma(s) / p.sigma(t) * (denoise.inputs[0] - p.alpha(t) * constant)
    assert torch.allclose(denoise.inputs[1], expected, atol=1e-5)
    assert drawn.estimate.std() > 0.01
    recorder = Recorder()
    sample(recorder, KEY, SHAPE, 2, replace(PLAIN, self_conditioning="recompute"), refine=refine)
    assert all((z_bar == constant).all() for z_bar in recorder.conditions[1::2])
