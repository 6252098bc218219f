"""Discrete flow matching on a small state space, where everything can be computed."""

import math

import pytest
import torch

from fastdiss_fairseq.diffusion.noise import fold, uniform
from fastdiss_fairseq.flow.jumps import JUMPS, cumulative, draw, euler, jump
from fastdiss_fairseq.flow.ladder import RUNGS, SMALLEST, draw_steps
from fastdiss_fairseq.flow.loss import generalised_kl, teacher_kl
from fastdiss_fairseq.flow.path import Path, kappa, kappa_rate
from fastdiss_fairseq.flow.sampling import FlowSampler, sample
from fastdiss_fairseq.flow.teacher import TEACHERS, heun, rk4
from fastdiss_fairseq.flow.training import FlowPlan, corrupt

FIRST, END, MASK = 4, 9, 0
DATA = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.3, 0.1, 0.1, 0.0])  # one of the five words is impossible
PATHS = {source: Path(source, FIRST, END, MASK) for source in ("uniform", "mask")}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
every_rule = pytest.mark.parametrize("rule", JUMPS)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def keys(count, name="positions"):
    return fold(torch.arange(count), name)


def posterior(path, x, t):
    """log p(x_1 | x_t) of the known data distribution, (N, V), by Bayes' rule."""
    source = torch.zeros(END)
    if path.source == "mask":
        source[MASK] = 1
    else:
        source[FIRST:END] = 1 / (END - FIRST)
    same = torch.nn.functional.one_hot(x, END)
    likelihood = kappa(t) * same + (1 - kappa(t)) * source[x].unsqueeze(1)
    joint = (DATA * likelihood).float()
    return (joint / joint.sum(1, keepdim=True)).log()


def decode(path, steps, count=20000, look=posterior, **options):
    sampler = FlowSampler(path, **{"temperature": 1.0, "last": "drawn", **options})
    return sample(
        lambda x, t: look(path, x, t), lambda function, logits, *others: function(logits, *others),
        keys(count), steps, sampler, watched=True,
    )  # fmt: skip


def chi_square(tokens, distribution):
    """The statistic of counts against probabilities; impossible tokens must not occur."""
    counts = torch.bincount(tokens, minlength=END).double()
    expected = distribution.double() * len(tokens)
    assert not counts[expected == 0].any()
    possible = expected > 0
    return ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()


#: 0.1 % of chi-square variables with 3 degrees of freedom are larger.
LARGE = 16.27


# Sampling


@every_path
@every_rule
@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_the_exact_posterior_reproduces_the_data(path, rule, steps):
    assert chi_square(decode(path, steps, solver=rule).tokens, DATA) < LARGE


@every_path
@every_rule
def test_on_the_way_tokens_are_distributed_as_the_path_says(path, rule):
    """After 32 of 64 steps: half of the tokens are data, half noise."""
    found = decode(path, 64, solver=rule).history[31][0]
    noise = torch.zeros(END)
    if path.source == "mask":
        noise[MASK] = 1
    else:
        noise[FIRST:END] = 1 / (END - FIRST)
    # Euler's steps are exact to first order only, about (1 / 64) / 2 of the tokens here
    assert chi_square(found, (DATA + noise) / 2) < (18.47 if rule == "cumulative" else 40)


@every_path
@pytest.mark.parametrize("last", ["drawn", "likeliest"])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_point_mass_is_exact(path, last, steps):
    """Also in one step."""
    point = torch.full((100, END), -float("inf"))
    point[:, 6] = 0
    found = decode(path, steps, count=100, look=lambda path, x, t: point[: len(x)], last=last)
    assert (found.tokens == 6).all() and not found.log_probs.any() and len(found.history) == steps


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 64])
def test_exactly_k_evaluations_at_times_from_0_with_equal_steps(steps):
    """The public code takes step sizes for times in its few-step grid."""
    times = []
    decode(PATHS["uniform"], steps, count=3, look=lambda path, x, t: times.append(float(t)) or posterior(path, x, t))
    assert times == pytest.approx([index / steps for index in range(steps)])


def test_the_likeliest_last_step_takes_the_likeliest():
    assert (decode(PATHS["uniform"], 1, count=50, last="likeliest").tokens == 4).all()


def test_log_probs_are_those_of_the_tokens():
    found = decode(PATHS["mask"], 1, count=50)
    assert torch.allclose(found.log_probs, DATA.log()[found.tokens])


def test_temperature_sharpens_and_zero_takes_the_likeliest():
    share = lambda tau: (decode(PATHS["mask"], 4, temperature=tau).tokens == 4).float().mean().item()
    cold = 0.5**2 / (0.5**2 + 0.3**2 + 0.1**2 + 0.1**2)
    assert share(0.5) == pytest.approx(cold, abs=0.02) and share(0.0) == 1


@pytest.mark.parametrize("rule", list(JUMPS))
def test_at_temperature_zero_the_short_way_is_the_long_one(rule):
    logits, x = torch.randn(500, END), torch.randint(END, (500,))
    u_leave, u_word = torch.rand(2, 500)
    t, h = torch.tensor([0.25, 0.125], dtype=torch.float64)
    sampler = FlowSampler(PATHS["uniform"], solver=rule, temperature=0.0)
    long = jump(sampler.tempered(logits), x, u_leave, u_word, t, h, rule)
    assert torch.equal(sampler.move(logits, x, u_leave, u_word, t, h), long)
    assert not torch.equal(long, x)


def test_watching_changes_nothing():
    sampler = FlowSampler(PATHS["mask"], temperature=1.0, last="drawn")
    run = lambda watched: sample(
        lambda x, t: posterior(PATHS["mask"], x, t), lambda f, *rest: f(*rest), keys(200), 6, sampler, watched
    )
    one, other = run(True), run(False)
    assert torch.equal(one.tokens, other.tokens) and len(one.history) == 6 and other.history == []
    assert torch.equal(one.history[-1][1], other.log_probs)


def test_decoding_a_position_does_not_depend_on_the_others():
    path, order = PATHS["uniform"], torch.randperm(500, generator=torch.Generator().manual_seed(1))
    sampler = FlowSampler(path, temperature=1.0, last="drawn")
    look = lambda x, t: posterior(path, x, t)
    run = lambda own: sample(look, lambda f, logits, *rest: f(logits, *rest), own, 6, sampler).tokens
    assert torch.equal(run(keys(500))[order], run(keys(500)[order]))
    assert torch.equal(run(keys(500))[:7], run(keys(500)[:7]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"solver": "ddim"}, "unknown solver 'ddim'.*euler"),
        ({"last": "first"}, "last"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_samplers_refuse_what_they_do_not_know(options, message):
    with pytest.raises(ValueError, match=message):
        FlowSampler(PATHS["mask"], **options)


# Jumps


def cumulative_scalar(t, h):
    """alpha(t, h), from the probability to leave a token that the prediction excludes."""
    return -(1 - cumulative(torch.zeros((), dtype=torch.float64), scalar(t), scalar(h))).log() / h


@pytest.mark.parametrize("t, h", [(0.0, 0.5), (0.2, 0.3), (0.5, 0.25), (0.9, 0.05), (0.0, 1 / 1024)])
def test_the_cumulative_scalar_is_the_mean_rate(t, h):
    times = t + h * (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    mean = (kappa_rate(times) / (1 - kappa(times))).mean()
    assert cumulative_scalar(t, h).item() == pytest.approx(mean.item(), rel=1e-6)


@pytest.mark.parametrize("t, h", [(0.0, 0.5), (0.2, 0.3), (0.5, 0.25)])
def test_jump_probabilities_are_the_closed_form(t, h):
    here = torch.linspace(0, 1, 11, dtype=torch.float64)
    r = (1 - (t + h)) / (1 - t)
    assert torch.allclose(cumulative(here, scalar(t), scalar(h)), 1 - r ** (1 - here))
    alpha = cumulative_scalar(t, h)
    assert torch.allclose(cumulative(here, scalar(t), scalar(h)), 1 - torch.exp(-h * alpha * (1 - here)))
    assert torch.allclose(euler(here, scalar(t), scalar(h)), (h / (1 - t) * (1 - here)).clamp(max=1))


@every_rule
def test_small_steps_jump_at_the_rate_of_the_flow(rule):
    here, t = torch.linspace(0, 1, 11, dtype=torch.float64), scalar(0.6)
    for h in (1e-3, 1e-5):
        rate = JUMPS[rule](here, t, scalar(h)) / h
        assert torch.allclose(rate, (1 - here) / (1 - 0.6), rtol=2 * h)


@every_rule
def test_the_last_step_leaves_whatever_is_not_certain(rule):
    here = torch.tensor([0.0, 0.5, 1.0])
    found = JUMPS[rule](here, scalar(0.75), scalar(0.25))
    assert found[0] == 1 and found[2] == 0
    assert found[1] == (1 if rule == "cumulative" else 0.5)


def test_jumps_have_the_frequencies_of_the_rule_and_of_the_prediction():
    count, t, h, x = 40000, scalar(0.25), scalar(0.25), 4
    u = uniform(fold(keys(count), "leave")), uniform(fold(keys(count), "word"))
    found = jump(DATA.log().expand(count, -1), torch.full((count,), x), *u, t, h)
    leaves = cumulative(DATA[x].double(), t, h)
    expected = DATA.double() * leaves / (1 - DATA[x])
    expected[x] = 1 - leaves
    assert chi_square(found, expected) < LARGE


def test_a_certain_token_stays():
    logits = torch.full((3, END), -float("inf"))
    logits[:, 5] = 0
    ones = torch.full((3,), 1e-9)
    assert (jump(logits, torch.full((3,), 5), ones, ones, scalar(0.0), scalar(1.0)) == 5).all()


@pytest.mark.parametrize("u", [1e-9, 0.3, 0.999999, 1.0])
def test_nothing_of_no_weight_is_drawn(u):
    weights = torch.tensor([[0.0, 0.0, 0.2, 0.0, 0.8, 0.0]])
    assert draw(weights, torch.tensor([u])).item() == (2 if u < 0.2 else 4)


# Training


@every_path
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_corruption_has_the_distribution_of_the_path(path, t):
    x_1 = torch.full((20000,), 5)
    x_t = path.corrupt(x_1, torch.tensor(t), keys(20000))
    expected = torch.zeros(END)
    if path.source == "mask":
        expected[MASK] = 1 - t
    else:
        expected[FIRST:END] = (1 - t) / (END - FIRST)
    expected[5] += t
    assert chi_square(x_t, expected) < 18.47


def test_what_is_not_movable_is_never_noise():
    """The public code has no padding mask."""
    x_1 = torch.tensor([[5, 6, 7, 2, 1, 1], [8, 2, 1, 1, 1, 1]]).repeat(200, 1)
    movable = x_1 >= FIRST
    for path in PATHS.values():
        seen = corrupt(FlowPlan(keys(400)), x_1, movable, path)
        assert torch.equal(seen.x_t[~movable], x_1[~movable])
        words = seen.x_t[movable]
        assert ((words >= FIRST) | (words == MASK)).all() and (words != x_1[movable]).any()


def test_corruption_of_a_sentence_ignores_its_batch_and_its_padding():
    x_1 = torch.tensor([[5, 6, 7, 8, 2], [8, 5, 6, 2, 1]])
    whole = corrupt(FlowPlan(keys(2), True), x_1, x_1 >= FIRST, PATHS["uniform"])
    alone = corrupt(FlowPlan(keys(2)[1:], True), x_1[1:, :4], x_1[1:, :4] >= FIRST, PATHS["uniform"])
    assert torch.equal(whole.x_t[1:, :4], alone.x_t) and torch.equal(whole.steps.t[1:], alone.steps.t)


@pytest.mark.parametrize("tilt", [1.0, 0.0])
def test_steps_are_powers_of_two_with_their_probabilities_and_end_in_time(tilt):
    steps = draw_steps(keys(200000), True, tilt)
    k = -steps.h.log2()
    assert torch.equal(k, k.round()) and k.min() >= 0 and k.max() == RUNGS
    found = torch.bincount(k.long().squeeze(1), minlength=RUNGS + 1).double() / len(k)
    expected = 2.0 ** (tilt * torch.arange(RUNGS + 1).double())
    assert torch.allclose(found, expected / expected.sum(), atol=4e-3)
    assert ((steps.t >= 0) & (steps.t + steps.h <= 1)).all()
    assert torch.equal(steps.large, steps.h.squeeze(1) > SMALLEST)


def test_plain_training_knows_the_smallest_step_alone():
    steps = draw_steps(keys(1000), False, 1.0)
    assert (steps.h == SMALLEST).all() and not steps.large.any() and steps.t.std() > 0.2


def test_generalised_kl_by_hand():
    p = torch.tensor([0.1, 0.6, 0.3])
    t = torch.tensor(0.75)
    away = generalised_kl(p[0].log(), p[1].log(), torch.tensor(False), t)
    there = generalised_kl(p[1].log(), p[1].log(), torch.tensor(True), t)
    assert away.item() == pytest.approx(-4 * (0.1 + math.log(0.6)))
    assert there.item() == pytest.approx(-4 * (0.6 - 1))


@every_path
def test_the_posterior_minimises_the_generalised_kl(path):
    """Its gradient with respect to the logits, averaged over the data and the path, is zero there alone."""
    t, count = torch.tensor(0.4), 100000
    x_1 = draw(DATA.expand(count, -1), uniform(keys(count, "data")))
    x_t = path.corrupt(x_1, t, keys(count))
    # one table of logits for each x_t
    table = posterior(path, torch.arange(END), t)
    for shift, close in ((0.0, True), (0.5, False)):
        logits = table.clamp(min=-30)
        logits[:, 4] += shift
        logits.requires_grad_(True)
        log_probs = logits[x_t].log_softmax(-1)
        here, goal = log_probs.gather(1, torch.stack((x_t, x_1), 1)).unbind(1)
        generalised_kl(here, goal, x_t == x_1, t).mean().backward()
        assert (logits.grad.abs().max().item() < 0.005) == close


def test_teacher_kl_is_torchs_and_ignores_what_both_exclude():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 6, END, generator=generator)
    expected = torch.nn.functional.kl_div(b.log_softmax(-1), a.softmax(-1), reduction="none").sum(-1)
    assert torch.allclose(teacher_kl(a, b), expected, atol=1e-6)
    a[:, 0], b[:, 0] = -float("inf"), -float("inf")
    b.requires_grad_(True)
    loss = teacher_kl(a, b)
    assert torch.allclose(loss, teacher_kl(a[:, 1:], b[:, 1:]), atol=1e-6)
    loss.sum().backward()
    assert torch.isfinite(b.grad).all() and teacher_kl(a, a).abs().max() < 1e-6


# The teacher


def recorded(combine, t, h, jump_to=lambda x, number: x + 1):
    """A teacher's evaluations and jumps: (x, t, h) each."""
    looks, jumps = [], []

    def look(x, t, h):
        looks.append((x, t, h))
        return torch.tensor([float(len(looks))])

    def move(k, x, t, h, number):
        jumps.append((k.item(), x, t, h, number))
        return jump_to(x, number)

    return combine(look, move, 0, t, h), looks, jumps


def test_rk4_evaluates_four_half_steps():
    found, looks, jumps = recorded(rk4, 0.25, 0.5)
    assert found.item() == pytest.approx((1 + 2 * 2 + 2 * 3 + 4) / 6)
    assert looks == [(0, 0.25, 0.25), (1, 0.5, 0.25), (2, 0.5, 0.25), (3, 0.75, 0.25)]
    assert jumps == [(1, 0, 0.25, 0.25, 0), (2, 1, 0.5, 0.25, 1), (3, 2, 0.5, 0.25, 2)]


def test_heun_evaluates_two():
    found, looks, jumps = recorded(heun, 0.25, 0.5)
    assert found.item() == 1.5
    assert looks == [(0, 0.25, 0.25), (1, 0.5, 0.25)] and jumps == [(1, 0, 0.25, 0.25, 0)]


@pytest.mark.parametrize("teacher", TEACHERS)
@every_path
def test_for_small_steps_the_target_is_the_prediction_itself(teacher, path):
    """Stage B's target tends to stage A's prediction: nothing jumps, and time stands still."""
    x, t = path.noise(keys(300)), torch.full((300, 1), 0.3)

    def move(logits, x, t, h, number):
        own = fold(keys(300), "teacher", number)
        u = uniform(fold(own, "leave")), uniform(fold(own, "word"))
        return jump(logits, x, *u, t.squeeze(1), h.squeeze(1))

    def gap(h):
        look = lambda x, t, h: posterior(path, x, t).clamp(min=-30)
        found = TEACHERS[teacher](look, move, x, t, torch.full_like(t, h))
        return (found.softmax(-1) - look(x, t, None).softmax(-1)).abs().max(1)[0].mean().item()

    assert gap(1e-6) < 1e-5 < 0.01 < gap(0.5)
