import math

import pytest
import torch

from fastdiss_fairseq.diffusion.noise import fold, gaussian
from fastdiss_fairseq.diffusion.perturbation import COUPLINGS, RULES, Perturbation
from fastdiss_fairseq.diffusion.process import Process
from fastdiss_fairseq.diffusion.times import Times

BATCH = 1000
KEY = fold(torch.arange(BATCH), "test")
T = torch.linspace(0.001, 1, BATCH).unsqueeze(1)
PROCESS = Process("sqrt", 4.0)

every_process = pytest.mark.parametrize("process", [PROCESS, Process("cosine", 1.0), Process("linear", 2.0)], ids=str)


@every_process
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("per_token", [False, True])
def test_later_times_are_later_and_at_most_one(rule, process, per_token):
    t = T.repeat(1, 3) * torch.tensor([1.0, 0.5, 0.0]) if per_token else T
    later = Perturbation(rule=rule).later_time(t, KEY, process)
    assert later.shape == t.shape and later.dtype == t.dtype
    assert (later >= t).all() and (later <= 1).all()
    assert (later[t < 0.9] > t[t < 0.9]).all()


@every_process
@pytest.mark.parametrize("gamma, shrink", [(1.0, 1.0), (0.0, 0.8), (2.0, 0.5)])
def test_gamma_rule_changes_the_snr_by_the_papers_factor(gamma, shrink, process):
    t = T.double()
    later = Perturbation(rule="gamma", gamma=gamma, shrink=shrink).later_time(t, KEY, process)
    inside = later < 1 - 1e-5
    change = (process.log_snr(later) - process.log_snr(t)).exp()
    assert inside.float().mean() > 0.5
    assert torch.allclose(change[inside], torch.full_like(change[inside], shrink**2 / (1 + gamma**2)), rtol=1e-4)
    assert (process.log_snr(later) >= process.log_snr(t) + math.log(shrink**2 / (1 + gamma**2)) - 1e-3).all()


def test_gamma_rule_with_gamma_zero_and_lambda_one_stays():
    t = T.double()
    later = Perturbation(rule="gamma", gamma=0.0, shrink=1.0).later_time(t, KEY, PROCESS)
    assert torch.allclose(later, t, atol=1e-6)


@every_process
def test_coefficients_are_the_papers(process):
    """lambda = alpha' / alpha and 1 + gamma^2 = sigma'^2 / sigma^2 give SNR(t') = SNR(t) lambda^2 / (1 + gamma^2)."""
    t, later = torch.tensor([0.1, 0.5, 0.9]).double(), torch.tensor([0.3, 0.6, 1.0]).double()
    shrink = process.alpha(later) / process.alpha(t)
    gamma = ((process.sigma(later) / process.sigma(t)) ** 2 - 1).sqrt()
    snr = process.log_snr(t) + 2 * shrink.log() - torch.log1p(gamma**2)
    assert torch.allclose(snr, process.log_snr(later), atol=1e-9)


@pytest.mark.parametrize("budgets", [(5,), (2, 3, 5, 10, 20), (1, 4)])
def test_budget_rule_goes_back_one_step_of_a_grid(budgets):
    t = torch.full((BATCH, 1), 0.01).double()
    gap = Perturbation(budgets=budgets).later_time(t, KEY, PROCESS) - t
    steps = 1 / torch.tensor(budgets).double()
    reached = (gap - steps.clamp(max=0.99)).abs() < 1e-9
    assert reached.any(1).all()
    share = reached.float().mean(0)
    expected = 1 / len(budgets)
    assert ((share - expected).abs() < 5 * math.sqrt(expected / BATCH)).all()


def test_budget_rule_is_clipped_at_one():
    t = torch.full((BATCH, 1), 0.97)
    assert (Perturbation(budgets=(2, 20)).later_time(t, KEY, PROCESS) == 1).all()


def test_uniform_rule_is_uniform_between_t_and_one():
    t = torch.full((BATCH, 1), 0.4).double()
    share = (Perturbation(rule="uniform").later_time(t, KEY, PROCESS) - t) / (1 - t)
    ordered = share.flatten().sort()[0]
    distance = (ordered - torch.arange(1, BATCH + 1) / BATCH).abs().max()
    assert distance < 1.95 / math.sqrt(BATCH)


DRAWS, VALUE = 40_000, 1.5


def moments(coupling, process, t, later):
    """z_t and the perturbed sample, many draws of one z_0 at one pair of times."""
    key = fold(torch.arange(5), "moments")
    z_0 = torch.full((5, DRAWS, 1), VALUE)
    t, later = torch.full((5, 1), t), torch.full((5, 1), later)
    z_t = process.diffuse(z_0, t, gaussian(fold(key, "noise"), DRAWS, 1))
    z_later = Perturbation(coupling=coupling).perturb(z_0, z_t, t, later, key, process)
    return z_t.double(), z_later.double()


@every_process
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("t, later", [(0.2, 0.25), (0.5, 0.8), (0.6, 1.0), (0.0, 0.5)])
def test_perturbed_sample_has_the_distribution_of_the_process_at_the_later_time(coupling, process, t, later):
    z_t, z_later = moments(coupling, process, t, later)
    n = z_t.numel()
    alpha_t, alpha, sigma_t, sigma = (
        f(torch.tensor(u, dtype=torch.float64)).item()
        for f, u in ((process.alpha, t), (process.alpha, later), (process.sigma, t), (process.sigma, later))
    )
    assert abs(z_later.mean() - alpha * VALUE) < 5 * sigma / math.sqrt(n)
    assert abs(z_later.var() - sigma**2) < 5 * sigma**2 * math.sqrt(2 / n)
    covariance = ((z_t - z_t.mean()) * (z_later - z_later.mean())).mean()
    expected = alpha / alpha_t * sigma_t**2 if coupling == "forward" else 0.0
    assert abs(covariance - expected) < 5 * 1.5 * sigma * sigma_t / math.sqrt(n)


class Recorder:
    def __init__(self):
        self.calls = []

    def __call__(self, z, t, z_bar):
        self.calls.append((z, t, z_bar, torch.tanh(z + z_bar + t.unsqueeze(-1))))
        return self.calls[-1][-1]


def estimate(rows=slice(None), **options):
    z_0 = gaussian(fold(KEY, "z_0"), 3, 2)
    z_t = PROCESS.diffuse(z_0, T, gaussian(fold(KEY, "noise"), 3, 2))
    denoise = Recorder()
    scp = Perturbation(**options)
    return denoise, scp.estimate(denoise, z_0[rows], z_t[rows], Times(T[rows], T[rows]), KEY[rows], PROCESS)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_one_hop_is_one_unconditioned_evaluation_at_the_later_time(rule, coupling):
    denoise, (found, later) = estimate(rule=rule, coupling=coupling)
    ((z, t, z_bar, output),) = denoise.calls
    assert torch.equal(t, later) and (later >= T).all()
    assert not z_bar.any() and torch.equal(found, output)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_two_hops_condition_the_estimate_on_one_from_later_still(rule, coupling):
    denoise, (found, later) = estimate(rule=rule, coupling=coupling, hops=2)
    (_, latest, first_condition, first), (z, t, second_condition, second) = denoise.calls
    assert torch.equal(t, later) and (T <= later).all() and (later <= latest).all() and (latest <= 1).all()
    assert (latest > later)[T < 0.3].all()
    assert not first_condition.any() and torch.equal(second_condition, first)
    assert torch.equal(found, second)


@pytest.mark.parametrize("rule", RULES)
def test_second_hop_noises_the_first_hops_sample_further(rule):
    denoise, _ = estimate(rule=rule, hops=2)
    (z_latest, latest, *_), (z_later, later, *_) = denoise.calls
    noise = gaussian(fold(KEY, "scp", 2, "scp-noise"), 3, 2)
    assert torch.equal(z_latest, PROCESS.diffuse_further(z_later, later, latest, noise))


def test_two_hops_draw_noise_of_their_own():
    denoise, _ = estimate(rule="uniform", coupling="fresh", hops=2)
    z_0 = gaussian(fold(KEY, "z_0"), 3, 2)
    noises = []
    for z, t, *_ in denoise.calls:
        noises.append((z - PROCESS.alpha(t).unsqueeze(-1) * z_0) / PROCESS.sigma(t).unsqueeze(-1))
    correlation = torch.corrcoef(torch.stack([noise.flatten() for noise in noises]))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(z_0.numel())
    two_hop_gaps = [
        (t - before).flatten() / (1 - before).flatten().clamp(min=1e-3)
        for (_, t, *_), before in zip(denoise.calls, (denoise.calls[1][1], T))
    ]
    assert abs(torch.corrcoef(torch.stack(two_hop_gaps))[0, 1]) < 0.2


def test_two_hops_are_two_steps_of_one_grid():
    t = torch.full((256, 1), 0.2)
    key = torch.arange(256)
    scp = Perturbation(budgets=(3, 5, 10, 20), hops=2)
    first = scp.later_time(t, key, PROCESS)
    second = scp.later_time(first, key, PROCESS, hop=2)
    assert torch.allclose(second - first, first - t, atol=1e-6) and len((first - t).unique()) == 4


def test_first_hop_is_the_same_with_one_hop_and_two():
    one, two = estimate(hops=1)[0].calls, estimate(hops=2)[0].calls
    assert torch.equal(one[0][0], two[1][0]) and torch.equal(one[0][1], two[1][1])


@pytest.mark.parametrize("rule", RULES)
def test_a_sentence_does_not_depend_on_the_others(rule):
    whole = estimate(rule=rule, hops=2)[1]
    rows = torch.tensor([700, 3, 42])
    for found, expected in zip(estimate(rows, rule=rule, hops=2)[1], whole):
        assert torch.allclose(found, expected[rows], atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rule": "far"}, "unknown SCP rule 'far'.*budget"),
        ({"coupling": "loose"}, "unknown SCP coupling 'loose'.*forward"),
        ({"hops": 0}, "hops must be 1 or 2"),
        ({"hops": 3}, "hops must be 1 or 2"),
        ({"budgets": ()}, "budgets"),
        ({"budgets": (5, 0)}, "budgets"),
        ({"gamma": -1.0}, "gamma >= 0"),
        ({"gamma": float("nan")}, "gamma >= 0"),
        ({"shrink": 0.0}, "lambda"),
        ({"shrink": 1.1}, "lambda"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Perturbation(**options)
