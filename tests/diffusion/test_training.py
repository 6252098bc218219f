from functools import partial

import pytest
import torch

from fastdiss_fairseq.diffusion.noise import fold, gaussian, uniform
from fastdiss_fairseq.diffusion.noise_scaling import PhaseTable
from fastdiss_fairseq.diffusion.perturbation import Perturbation
from fastdiss_fairseq.diffusion.process import Process
from fastdiss_fairseq.diffusion.times import Times
from fastdiss_fairseq.diffusion import training
from fastdiss_fairseq.diffusion.training import training_pass

#: Unless a test says otherwise, all tokens of a sentence share one t, and estimates stay as they are.
TrainingPlan = partial(training.TrainingPlan, mixed_times=0.0, estimate="direct")

B, LENGTH, D = 12, 5, 4
KEY = fold(torch.arange(B), "test")
Z_0 = gaussian(fold(KEY, "z_0"), LENGTH, D)
PROCESS = Process("sqrt", 4.0)


class Network:
    """A denoiser with one parameter that notes its calls."""

    def __init__(self):
        self.weight = torch.tensor(0.7, requires_grad=True)
        self.calls = []

    def __call__(self, z, t, z_bar, rows):
        self.calls.append((z, t, z_bar, rows, torch.is_grad_enabled()))
        return self.weight * z * (1.5 - t.unsqueeze(-1)) + 0.25 * z_bar

    @property
    def with_gradient(self):
        return [call[-1] for call in self.calls]


def half_right(estimate):
    """Every second token is right."""
    return (torch.arange(estimate.size(1)) % 2 == 0).expand(estimate.shape[:2])


def never(estimate):
    raise AssertionError("rounded without MANS")


def run(plan, is_correct=never, z_0=Z_0, **options):
    network, mask = Network(), torch.ones(z_0.shape[:2], dtype=torch.bool)
    return network, training_pass(network, is_correct, z_0, mask, plan.rows(), plan, PROCESS, **options)


def standard_step(network, key, z_0, probability):
    """Self-conditioned diffusion training as textbooks have it, written without the package's step."""
    t = uniform(fold(key, "time"))
    chosen = uniform(fold(key, "self-conditioning")) < probability
    noise = gaussian(fold(key, "noise"), z_0.size(1), z_0.size(2))
    alpha = PROCESS.alpha(t)[:, None, None]
    sigma = PROCESS.sigma(t)[:, None, None]
    z_t = alpha * z_0 + sigma * noise
    with torch.no_grad():
        estimate = network(z_t, t[:, None], torch.zeros_like(z_t), None)
        z_bar = torch.where(chosen[:, None, None], estimate, torch.zeros_like(z_t))
    return network(z_t, t[:, None], z_bar, None)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beta", [1.0, PhaseTable((2.0,), (), start=100)(50)], ids=["off", "phase of 1"])
def test_without_scp_and_mans_the_step_is_standard_diffusion_bit_for_bit(probability, beta):
    network, found = run(TrainingPlan(KEY, probability, scp=None, beta=beta))
    reference = Network()
    expected = standard_step(reference, KEY, Z_0, probability)
    assert torch.equal(found.estimate, expected)
    found.estimate.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    assert torch.equal(network.weight.grad, reference.weight.grad)
    assert found.moved is None and torch.equal(found.token_t, found.t) and found.gap == 0


@pytest.mark.parametrize(
    "scp, beta, without_gradient",
    [
        (None, 1.0, 1),
        (None, 2.0, 2),
        (Perturbation(), 1.0, 1),
        (Perturbation(), 2.0, 2),
        (Perturbation(hops=2), 1.0, 2),
        (Perturbation(hops=2), 2.0, 3),
    ],
)
def test_number_of_evaluations(scp, beta, without_gradient):
    network, _ = run(TrainingPlan(KEY, 0.5, scp, beta), half_right)
    assert network.with_gradient == [False] * without_gradient + [True]


def test_nobody_conditioned_costs_nothing():
    network, found = run(TrainingPlan(KEY, 0.0, Perturbation(hops=2)))
    assert network.with_gradient == [True]
    assert not network.calls[0][2].any() and found.gap == 0


def test_everybody_is_conditioned_at_probability_one():
    network, _ = run(TrainingPlan(KEY, 1.0))
    assert network.calls[-1][2].flatten(1).any(1).all()


@pytest.mark.parametrize("scp", [None, Perturbation(), Perturbation("gamma", "fresh", 2)])
@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_estimates_are_made_for_the_conditioned_sentences_alone(scp, beta):
    plan = TrainingPlan(KEY, 0.5, scp, beta)
    network, _ = run(plan, half_right)
    chosen = plan.rows().conditioned
    assert 0 < len(chosen) < B
    z, t, z_bar, rows, _ = network.calls[-1]
    assert rows is None
    assert z_bar.flatten(1).any(1).nonzero().squeeze(1).tolist() == chosen.tolist()
    for _, _, _, rows, _ in network.calls[beta > 1 : -1]:
        assert torch.equal(rows, chosen)


@pytest.mark.parametrize("scp", [None, Perturbation(), Perturbation(hops=2)])
@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_gradient_flows_through_the_last_pass_alone(scp, beta):
    """The gradient is that of the last evaluation with its inputs held fixed."""
    z_0 = Z_0.clone().requires_grad_()
    network, found = run(TrainingPlan(KEY, 1.0, scp, beta), half_right, z_0)
    found.estimate.sum().backward()
    z, t, z_bar, *_ = network.calls[-1]
    assert not z_bar.requires_grad and not t.requires_grad
    weight = (z.detach() * (1.5 - t.unsqueeze(-1))).sum()
    assert torch.allclose(network.weight.grad, weight, rtol=1e-4)
    expected = 0.7 * (1.5 - found.token_t) * PROCESS.alpha(found.token_t)
    assert torch.allclose(z_0.grad, expected.unsqueeze(-1).expand_as(z_0), atol=1e-6)


def test_mans_moves_the_right_tokens_with_the_same_noise():
    plain, _ = run(TrainingPlan(KEY, 0.0))
    network, found = run(TrainingPlan(KEY, 0.0, None, 2.0), half_right)
    right = half_right(Z_0)
    assert torch.equal(found.moved, right)
    assert torch.equal(found.token_t, torch.where(right, (2 * found.t).clamp(max=1), found.t.expand_as(right)))
    (z_first, t_first, no_condition, _, _), (z, t, _, _, _) = network.calls
    assert torch.equal(z_first, plain.calls[0][0]) and torch.equal(t_first, found.t) and not no_condition.any()
    assert torch.equal(t, found.token_t)
    assert torch.equal(z[~right], z_first[~right]) and not torch.equal(z[right], z_first[right])
    noise = gaussian(fold(KEY, "noise"), LENGTH, D)
    expected = PROCESS.alpha(t).unsqueeze(-1) * Z_0 + PROCESS.sigma(t).unsqueeze(-1) * noise
    assert torch.equal(z, expected)


def test_without_scp_the_estimate_is_made_at_the_times_that_mans_chose():
    """MANS' own look saw less noise, and holds the right answer at every token it moved."""
    network, found = run(TrainingPlan(KEY, 1.0, None, 2.0), half_right)
    (z_look, *_), (z_estimate, t, *_), (z, _, z_bar, *_) = network.calls
    assert torch.equal(z_estimate, z) and torch.equal(t, found.token_t) and not torch.equal(z_look, z)
    estimate = network.weight * z * (1.5 - found.token_t.unsqueeze(-1))
    assert torch.equal(z_bar, estimate.detach()) and found.gap == 0


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_scp_conditions_on_a_later_time_than_mans_chose(beta):
    network, found = run(TrainingPlan(KEY, 1.0, Perturbation(budgets=(5,)), beta), half_right)
    later = network.calls[-2][1]
    assert torch.allclose(later, (found.token_t + 0.2).clamp(max=1))
    assert found.gap.item() == pytest.approx((later - found.token_t).mean(1).sum().item(), rel=1e-5)
    assert torch.equal(network.calls[-1][1], found.token_t)


def test_scp_changes_the_estimate_and_nothing_else():
    standard, a = run(TrainingPlan(KEY, 0.5))
    perturbed, b = run(TrainingPlan(KEY, 0.5, Perturbation()))
    assert torch.equal(a.t, b.t) and torch.equal(standard.calls[0][3], perturbed.calls[0][3])
    assert torch.equal(standard.calls[-1][0], perturbed.calls[-1][0])
    assert not torch.allclose(standard.calls[-1][2], perturbed.calls[-1][2])


@pytest.mark.parametrize("scp", [None, Perturbation(), Perturbation("uniform", "fresh", 2)])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_a_sentence_does_not_depend_on_the_others(scp, beta):
    whole = run(TrainingPlan(KEY, 0.5, scp, beta), half_right)[1].estimate
    for rows in (torch.arange(6), torch.arange(6, B), torch.tensor([11, 0, 5])):
        part = run(TrainingPlan(KEY[rows], 0.5, scp, beta), half_right, Z_0[rows])[1].estimate
        assert torch.allclose(part, whole[rows], atol=1e-6)


def test_times_and_conditioning_are_spread_as_asked():
    key = fold(torch.arange(20_000), "many")
    z_0 = torch.zeros(len(key), 1, 1)
    plan = TrainingPlan(key, 0.3)
    _, found = run(plan, z_0=z_0)
    conditioned = torch.zeros(len(key)).index_fill(0, plan.rows().conditioned, 1)
    assert abs(conditioned.mean() - 0.3) < 5 * (0.21 / len(key)) ** 0.5
    ordered = found.t.flatten().sort()[0]
    assert (ordered - torch.arange(1, len(key) + 1) / len(key)).abs().max() < 1.95 / len(key) ** 0.5
    correlation = torch.corrcoef(torch.stack((found.t.flatten(), conditioned)))[0, 1]
    assert abs(correlation) < 5 / len(key) ** 0.5


# Mixed times


def test_mixed_times_are_known_or_unknown_at_the_sentences_rate():
    key = fold(torch.arange(4000), "mixed times")
    plain, mixed = Times.draw(key, 50).tokens, Times.draw(key, 50, 0.5).tokens
    shared = (mixed == plain).all(1)
    assert shared.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert set(mixed[~shared].unique().tolist()) == {0.0, 1.0}
    rate = mixed[~shared].mean(1)
    assert (rate - plain[~shared].squeeze(1)).abs().mean() < 0.1
    assert (Times.draw(key, 50, 1.0).tokens != plain).all(1).all()


def test_mixed_times_do_not_depend_on_the_length():
    assert torch.equal(Times.draw(KEY, 9, 1.0).tokens[:, :5], Times.draw(KEY, 5, 1.0).tokens)


@pytest.mark.parametrize("gap", [0.0, 0.25, 2.0])
def test_later_a_mixed_sentence_has_more_unknown_tokens_and_others_more_noise(gap):
    times = Times.draw(fold(torch.arange(4000), "later"), 50, 0.5)
    later, mixed = times.later(lambda t: (t + gap).clamp(max=1)), times.mixed.squeeze(1)
    assert torch.equal(later.tokens[~mixed], (times.level[~mixed] + gap).clamp(max=1).expand(-1, 50))
    assert set(later.tokens[mixed].unique().tolist()) <= {0.0, 1.0}
    assert (later.tokens >= times.tokens).all()
    rate = later.tokens[mixed].mean(1, keepdim=True)
    assert (rate - (times.level[mixed] + gap).clamp(max=1)).abs().mean() < 0.07


def test_scp_makes_a_mixed_sentences_estimate_with_fewer_tokens_known():
    """As in decoding by confidence: what is known now was in part unknown when the estimate was made."""
    network, found = run(TrainingPlan(KEY, 1.0, Perturbation(budgets=(2,)), mixed_times=1.0))
    (_, later, _, _, _), (z, now, _, _, _) = network.calls
    assert set(later.unique().tolist()) <= {0.0, 1.0}
    assert (later >= now).all() and (later > now).any() and torch.equal(now, found.t)


@pytest.mark.parametrize("scp", [None, Perturbation(), Perturbation("uniform", "fresh", 2)])
def test_known_tokens_are_clean_and_mans_leaves_them_known(scp):
    network, found = run(TrainingPlan(KEY, 0.5, scp, 3.0, mixed_times=1.0), half_right)
    known = found.t == 0
    assert known.any() and (~known).any() and not found.token_t[known].any() and found.moved is None
    noise = PROCESS.sigma(torch.zeros(())) * gaussian(fold(KEY, "noise"), LENGTH, D)
    assert torch.allclose(network.calls[-1][0][known], (PROCESS.alpha(torch.zeros(())) * Z_0 + noise)[known])


@pytest.mark.parametrize("scp", [None, Perturbation(), Perturbation(hops=2)])
def test_self_conditioning_gets_the_refined_estimate(scp):
    plan = TrainingPlan(KEY, 0.5, scp)
    network, _ = run(plan, refine=lambda estimate: torch.full_like(estimate, 7.0))
    expected = torch.zeros_like(Z_0).index_fill(0, plan.rows().conditioned, 7)
    assert torch.equal(network.calls[-1][2], expected)
    first, *between = [call[2] for call in network.calls[:-1]]
    assert not first.any() and all((condition == 7).all() for condition in between)


def test_unknown_tokens_cannot_be_moved():
    _, found = run(TrainingPlan(KEY, 0.5, None, 3.0, mixed_times=0.5), lambda z: torch.ones(z.shape[:2]).bool())
    assert torch.equal(found.moved, found.token_t > found.t) and (found.t == 1).any() and found.moved.any()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_mans_looks_at_sentences_of_one_time_alone(share):
    plan = TrainingPlan(KEY, 0.0, None, 3.0, mixed_times=share)
    network, found = run(plan, half_right)
    of_one_time = ((found.t > 0) & (found.t < 1)).all(1).nonzero().squeeze(1)
    assert (
        torch.equal(plan.rows().looked_at, of_one_time)
        and len(of_one_time) in {0.0: [B], 0.5: range(1, B), 1.0: [0]}[share]
    )
    if share == 1:
        assert found.moved is None and network.with_gradient == [True]
        return
    assert torch.equal(network.calls[0][3], of_one_time) and len(network.calls[0][0]) == len(of_one_time)
    expected = torch.zeros(B, LENGTH, dtype=torch.bool).index_fill(0, of_one_time, True) & half_right(Z_0)
    assert torch.equal(found.moved, expected)
