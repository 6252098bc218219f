import math
from collections import Counter

import pytest
import torch

from fastdiss_fairseq.generation.choice import autoregressive_score, mbr, mean_log_probability

EOS, PAD = 2, 1


def sentence_bleu(hypothesis, reference):
    """BLEU-4 with add-one smoothing of the orders above 1, in plain Python."""
    if not hypothesis:
        return 0.0
    logs = []
    for order in range(1, 5):
        grams = lambda words: Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
        found, wanted = grams(hypothesis), grams(reference)
        matches = sum(min(count, wanted[gram]) for gram, count in found.items())
        total = sum(found.values())
        if order > 1:
            matches, total = matches + 1, total + 1
        if matches == 0:
            return 0.0
        logs.append(math.log(matches / total))
    brevity = min(0.0, 1 - len(reference) / len(hypothesis))
    return math.exp(sum(logs) / 4 + brevity)


def slow_mbr(candidates):
    others = len(candidates) - 1
    return [
        sum(sentence_bleu(c, d) for j, d in enumerate(candidates) if j != i) / others for i, c in enumerate(candidates)
    ]


def tensors(sentences, ends=True):
    """(S, C, T) ids with </s> at each end, and the mask."""
    rows = [[words + [EOS] * ends for words in candidates] for candidates in sentences]
    width = max(len(words) for candidates in rows for words in candidates)
    tokens = torch.tensor([[words + [PAD] * (width - len(words)) for words in candidates] for candidates in rows])
    mask = torch.tensor([[[i < len(words) for i in range(width)] for words in candidates] for candidates in rows])
    return tokens, mask


def random_candidates(sentences, candidates, longest, vocabulary, seed, shortest=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high, n: torch.randint(low, high, (n,), generator=generator).tolist()
    return [[draw(4, vocabulary, n) for n in draw(shortest, longest + 1, candidates)] for _ in range(sentences)]


@pytest.mark.parametrize("vocabulary", [5, 6, 9, 30_000])
@pytest.mark.parametrize("longest", [1, 3, 4, 12])
@pytest.mark.parametrize("candidates", [2, 5])
def test_mbr_equals_the_slow_reference(candidates, longest, vocabulary):
    sentences = random_candidates(8, candidates, longest, vocabulary, seed=longest)
    found = mbr(*tensors(sentences), [EOS])
    expected = torch.tensor([slow_mbr(candidates) for candidates in sentences]).double()
    assert torch.allclose(found.double(), expected, atol=1e-6)
    assert torch.equal(mbr(*tensors(sentences, ends=False), []), found)


def test_mbr_sees_near_copies():
    """Edited copies of one sentence: long common n-grams, repetitions, and clipped counts."""
    base = [4, 5, 6, 7, 4, 5, 6, 7, 8, 9]
    sentences = [[base, base[1:], base[:4] + [30] + base[5:], [4] * 10, base + base, [4, 4, 5]]]
    found = mbr(*tensors(sentences), [EOS])
    assert torch.allclose(found[0].double(), torch.tensor(slow_mbr(sentences[0])).double(), atol=1e-6)
    assert found.max() > 0.3


def test_ignored_ids_are_left_out_wherever_they_stand():
    inside = [[[4, 5, EOS, 6, 7], [4, 5, 6, 7]], [[8, 9, 4, 5], [8, EOS, 9, 4, 5]]]
    assert torch.allclose(mbr(*tensors(inside), [EOS]), torch.ones(2, 2).double(), atol=1e-6)


def test_ids_at_padding_do_not_matter():
    tokens, mask = tensors(random_candidates(4, 4, 8, 9, seed=3))
    noisy = torch.where(mask, tokens, torch.randint(4, 9, tokens.shape, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(mbr(noisy, mask, [EOS]), mbr(tokens, mask, [EOS]))


def test_identical_candidates_tie_and_the_first_is_chosen():
    words = [4, 5, 6, 7, 8]
    scores = mbr(*tensors([[words, words, words]]), [EOS])
    assert torch.allclose(scores, torch.ones(1, 3).double())
    assert scores.sort(dim=1, descending=True, stable=True).indices.tolist() == [[0, 1, 2]]


def test_the_outlier_comes_last():
    sentences = [[[4, 5, 6, 7, 30], [4, 5, 6, 7, 8], [4, 5, 6, 7, 31], [20, 21, 22, 23, 24]]]
    assert mbr(*tensors(sentences), [EOS]).argmin() == 3


@pytest.mark.parametrize("words", [[4, 5, 6], [4], []])
def test_one_candidate_has_utility_zero(words):
    assert mbr(*tensors([[words], [words]]), [EOS]).tolist() == [[0.0], [0.0]]


def test_mbr_does_not_depend_on_the_other_sentences():
    sentences = random_candidates(6, 3, 9, 8, seed=5)
    together = mbr(*tensors(sentences), [EOS])
    for i, candidates in enumerate(sentences):
        assert torch.allclose(mbr(*tensors([candidates]), [EOS])[0], together[i], atol=1e-6)


def test_mean_log_probability_is_over_the_real_tokens():
    log_probs = torch.tensor([[[-1.0, -3.0, -99.0], [-2.0, -99.0, -99.0], [-1.0, -2.0, -6.0]]])
    mask = torch.tensor([[[True, True, False], [True, False, False], [True, True, True]]])
    assert mean_log_probability(log_probs, mask).tolist() == [[-2.0, -2.0, -3.0]]
    of_lengths = torch.tensor([[-1.0, -2.0, -3.0]])
    assert mean_log_probability(log_probs, mask, of_lengths).tolist() == [[-2.5, -4.0, -4.0]]


class Reranker:
    """An autoregressive model whose log-probabilities depend on the source's and the previous word."""

    def __init__(self, words=9):
        self.encoder, self.rows = self, []
        self.table = torch.randn(words, words, words, generator=torch.Generator().manual_seed(1)).log_softmax(-1)

    def forward_torchscript(self, inputs):
        return inputs["src_tokens"][:, 0]

    def reorder_encoder_out(self, encoded, rows):
        self.rows.append(len(rows))
        return encoded[rows]

    def decoder(self, previous, encoder_out):
        return self.table[encoder_out.unsqueeze(1), previous]

    def get_normalized_probs(self, output, log_probs):
        return output if log_probs else output.exp()


def test_reranking_in_pieces_changes_nothing(monkeypatch):
    tokens, mask = tensors([[[4, 5, 6], [4, 7], [8]], [[5, 5], [6, 4, 4], [7, 8]]])
    sources, whole, pieces = torch.tensor([[3, 2], [4, 2]]), Reranker(), Reranker()
    expected = autoregressive_score(whole, sources, tokens, mask, EOS, 1)
    by_hand = [whole.table[3, EOS, 4], whole.table[3, 4, 5], whole.table[3, 5, 6], whole.table[3, 6, EOS]]
    assert expected[0, 0].item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)
    monkeypatch.setattr("fastdiss_fairseq.generation.choice.SCORED_AT_ONCE", 2 * tokens.size(2) + 1)
    assert torch.equal(autoregressive_score(pieces, sources, tokens, mask, EOS, 1), expected)
    assert whole.rows == [6] and pieces.rows == [2, 2, 2]
