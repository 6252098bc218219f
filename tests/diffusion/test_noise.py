import math

import pytest
import torch

from fastdiss_fairseq.diffusion import noise
from fastdiss_fairseq.diffusion.noise import fold, gaussian, sentence_key, uniform

N = 200_000
KEYS = fold(torch.arange(N), "test")


def correlation(a, b):
    return torch.corrcoef(torch.stack((a.flatten().double(), b.flatten().double())))[0, 1].abs().item()


def test_gaussian_moments():
    draws = gaussian(torch.tensor([7]), N // 8, 8).double()
    assert abs(draws.mean()) < 5 / math.sqrt(N)
    assert abs(draws.var() - 1) < 5 * math.sqrt(2 / N)
    assert abs((draws**3).mean()) < 5 * math.sqrt(15 / N)
    assert abs((draws**4).mean() - 3) < 5 * math.sqrt(96 / N)


def test_gaussian_distribution_by_kolmogorov_smirnov():
    draws = gaussian(KEYS, 1, 1).flatten().double().sort()[0]
    expected = torch.special.ndtr(draws)
    distance = (expected - torch.arange(1, N + 1) / N).abs().max()
    assert distance < 1.95 / math.sqrt(N)  # 1.95: a level of 0.001


def test_uniform_by_chi_square():
    counts = torch.histc(uniform(KEYS), bins=100, min=0, max=1)
    statistic = ((counts - N / 100) ** 2 / (N / 100)).sum()
    assert 99 - 5 * math.sqrt(2 * 99) < statistic < 99 + 5 * math.sqrt(2 * 99)


def test_uniform_never_reaches_its_ends():
    draws = uniform(KEYS)
    assert draws.dtype == torch.float32 and 0 < draws.min() and draws.max() < 1


@pytest.mark.parametrize(
    "a, b",
    [
        (fold(torch.tensor(1), "noise"), fold(torch.tensor(2), "noise")),
        (fold(torch.tensor(1), "noise"), fold(torch.tensor(1), "start")),
        (fold(torch.tensor(1), "step", 0), fold(torch.tensor(1), "step", 1)),
        (fold(torch.tensor(0), 0), fold(torch.tensor(0), 1)),
        (fold(torch.tensor(1), 2, 3), fold(torch.tensor(1), 3, 2)),
        (torch.tensor(0), torch.tensor(1)),
    ],
    ids=["sentences", "streams", "steps", "small integers", "order of parts", "raw keys"],
)
def test_keys_give_independent_noise(a, b):
    a, b = gaussian(a, N // 8, 8), gaussian(b, N // 8, 8)
    assert correlation(a, b) < 5 / math.sqrt(N)
    assert correlation(a**2, b**2) < 5 / math.sqrt(N)


def test_positions_dimensions_and_neighbouring_keys_are_independent():
    draws = gaussian(torch.arange(300), 30, 20)
    limit = 5 / math.sqrt(draws.numel() / 2)
    for a, b in [
        (draws[1:], draws[:-1]),
        (draws[:, 1:], draws[:, :-1]),
        (draws[..., 1:], draws[..., :-1]),
        (draws[..., ::2], draws[..., 1::2]),  # the two halves of a Box-Muller pair
    ]:
        assert correlation(a, b) < limit
        assert correlation(a**2, b**2) < limit


def test_uniform_is_independent_across_keys_and_of_the_gaussian_of_the_same_key():
    draws = uniform(KEYS)
    assert correlation(draws[1:], draws[:-1]) < 5 / math.sqrt(N)
    assert correlation(draws, gaussian(KEYS, 1, 1)) < 5 / math.sqrt(N)


def test_no_two_keys_collide():
    keys = fold(torch.arange(1000).unsqueeze(1), torch.arange(1000))
    assert len(keys.unique()) == 1_000_000


@pytest.mark.parametrize("dim", [1, 7, 8])
def test_longer_noise_begins_with_the_shorter(dim):
    key = torch.tensor([3, 4])
    short, long = gaussian(key, 5, dim), gaussian(key, 9, dim)
    assert short.shape == (2, 5, dim) and short.dtype == torch.float32
    assert torch.equal(long[:, :5], short)


def test_noise_of_a_sentence_does_not_depend_on_the_batch():
    key = fold(torch.arange(6), "x")
    batch = gaussian(key, 4, 3)
    order = torch.tensor([5, 0, 3])
    assert torch.equal(gaussian(key[order], 4, 3), batch[order])
    assert torch.equal(gaussian(key.view(2, 3), 4, 3), batch.view(2, 3, 4, 3))


def keys_of(sentences, width, left, seed=1):
    rows = [[0] * (width - len(s)) + s if left else s + [0] * (width - len(s)) for s in sentences]
    tokens = torch.tensor(rows)
    mask = torch.tensor([[(i >= width - len(s)) if left else (i < len(s)) for i in range(width)] for s in sentences])
    return sentence_key(seed, tokens, mask)


SENTENCES = [[5, 6, 7], [7, 6, 5], [5, 6], [5, 6, 7, 7], [2], [6, 5, 7]]


@pytest.mark.parametrize("width", [4, 5, 40])
@pytest.mark.parametrize("left", [False, True])
def test_sentence_key_ignores_padding(width, left):
    assert torch.equal(keys_of(SENTENCES, width, left), keys_of(SENTENCES, 4, False))


def test_sentence_key_depends_on_tokens_their_order_and_the_seed():
    keys = torch.cat([keys_of(SENTENCES, 4, False, seed) for seed in (1, 2)])
    assert len(keys.unique()) == 2 * len(SENTENCES)


def test_sentence_key_ignores_the_order_of_the_batch():
    assert torch.equal(keys_of(SENTENCES[::-1], 4, False), keys_of(SENTENCES, 4, False).flip(0))


@pytest.mark.parametrize("key", [torch.tensor(3), torch.tensor([[5], [-(2**63)]]), torch.arange(12).view(3, 4)[:, ::2]])
def test_numpy_and_torch_give_the_same(monkeypatch, key):
    """A CPU computes keys with numpy, a GPU with torch."""

    def draws():
        own = fold(key, "some", 7, torch.tensor([2, -9]), ("a", 3))
        return own, uniform(own), gaussian(own, 3, 5), gaussian(key, 2, 4)

    by_numpy = draws()
    monkeypatch.setattr(noise, "_bits", lambda key: key)
    for ours, theirs in zip(by_numpy, draws()):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


@pytest.mark.filterwarnings("error")
def test_single_keys_overflow_in_silence():
    assert fold(torch.tensor(2**62), "x").shape == uniform(torch.tensor(2**62)).shape == ()


def test_several_parts_at_once_are_each_alone():
    key = fold(torch.arange(6).view(2, 3), "some")
    found = fold(key, ("one", 2, torch.tensor([3, 4, 5])), "last")
    assert found.shape == (3, 2, 3)
    for part, keys in zip(("one", 2, torch.tensor([3, 4, 5])), found):
        assert torch.equal(keys, fold(key, part, "last"))
