"""Properties of schedules, grids, times, noise and masks for whatever numbers come."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiss_fairseq.diffusion.mask_predict import least_confident, repeated
from fastdiss_fairseq.diffusion.noise import gaussian, sentence_key
from fastdiss_fairseq.diffusion.process import Process
from fastdiss_fairseq.diffusion.schedules import SCHEDULES, alpha_bar, time_of_alpha_bar
from fastdiss_fairseq.diffusion.times import Times, uniform_grid

TIMES = st.floats(0, 1)
KEYS = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@given(t=TIMES, later=TIMES)
def test_a_schedule_falls_and_has_an_inverse(schedule, t, later):
    first, second = (alpha_bar(schedule, torch.tensor(value, dtype=torch.float64)) for value in sorted((t, later)))
    assert 0 < second <= first < 1
    assert abs(time_of_alpha_bar(schedule, first).item() - min(t, later)) < 1e-6


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@given(t=TIMES, later=TIMES, factor=st.floats(0.1, 20))
def test_noising_further_arrives_at_the_variance_of_the_later_time(schedule, t, later, factor):
    t, later = (torch.tensor(value, dtype=torch.float64) for value in sorted((t, later)))
    process = Process(schedule, factor)
    still, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    shrink = process.diffuse_further(one, t, later, still)
    noise = process.diffuse_further(still, t, later, one)
    assert torch.allclose(shrink * process.alpha(t), process.alpha(later), atol=1e-9)
    assert torch.allclose((shrink * process.sigma(t)) ** 2 + noise**2, process.sigma(later) ** 2, atol=1e-6 * factor**2)


@given(steps=st.integers(1, 2000))
def test_a_grid_falls_from_one_to_zero_in_k_steps(steps):
    grid = uniform_grid(steps)
    assert (len(grid), grid[0], grid[-1]) == (steps + 1, 1, 0)
    assert all(later > t for later, t in zip(grid, grid[1:]))


@given(keys=st.lists(KEYS, min_size=1, max_size=5), length=st.integers(1, 30), mixed=TIMES, step=TIMES)
def test_later_times_are_later_and_what_is_unknown_stays_so(keys, length, mixed, step):
    times = Times.draw(torch.tensor(keys), length, mixed)
    later = times.later(lambda t: (t + step).clamp(max=1))
    assert (later.tokens >= times.tokens).all() and (later.level >= times.level).all()
    assert 0 <= times.tokens.min() and later.tokens.max() <= 1
    if times.mixed is not None:
        assert torch.isin(times.tokens.expand(-1, length)[times.mixed.squeeze(1)], torch.tensor([0.0, 1.0])).all()


@given(key=KEYS, lengths=st.tuples(st.integers(1, 20), st.integers(1, 20)), dim=st.integers(1, 9))
def test_noise_of_a_longer_sentence_begins_with_that_of_a_shorter(key, lengths, dim):
    short, long = (gaussian(torch.tensor([key]), length, dim) for length in sorted(lengths))
    assert torch.equal(short, long[:, : min(lengths)]) and torch.isfinite(long).all()


@given(
    tokens=st.lists(st.integers(4, 50_000), min_size=1, max_size=20), left=st.integers(0, 5), right=st.integers(0, 5)
)
def test_a_sentences_key_ignores_the_padding_around_it(tokens, left, right):
    padded = torch.tensor([[1] * left + tokens + [1] * right])
    bare = torch.tensor([tokens])
    assert torch.equal(sentence_key(7, padded, padded.ne(1)), sentence_key(7, bare, bare.ne(1)))


@given(data=st.data(), width=st.integers(1, 15), denominator=st.integers(1, 30))
def test_the_least_confident_share_is_as_large_as_asked_and_less_certain_than_the_rest(data, width, denominator):
    numerator = data.draw(st.integers(0, denominator))
    length = data.draw(st.integers(1, width))
    certain = data.draw(st.lists(st.floats(-50, 0, width=32), min_size=width, max_size=width))
    log_probs, mask = torch.tensor([[certain]]), torch.arange(width).view(1, 1, width) < length
    chosen = least_confident(log_probs, mask, numerator, denominator)
    assert chosen.sum() == length * numerator // denominator and not (chosen & ~mask).any()
    if chosen.any() and (mask & ~chosen).any():
        assert log_probs[chosen].max() <= log_probs[mask & ~chosen].min()


@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_of_two_equal_neighbours_one_is_repeated(tokens, seed):
    log_probs = -torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed))
    marked = repeated(torch.tensor(tokens), log_probs).tolist()
    for i in range(len(tokens) - 1):
        assert not tokens[i] == tokens[i + 1] or marked[i] or marked[i + 1]
    alone = [i for i, word in enumerate(tokens) if word not in tokens[max(i - 1, 0) : i] + tokens[i + 1 : i + 2]]
    assert not any(marked[i] for i in alone)
