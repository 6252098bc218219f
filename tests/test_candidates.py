import torch
from fairseq.data import Dictionary

from fastdiss_fairseq.diffusion.sampling import Decoded
from fastdiss_fairseq.generation.candidates import Candidates, with_letters

PAD = 1
#: Ids below 20 are words, of which the specials' runs do not matter; the others are signs.
WORDS = torch.arange(30) < 20


def candidates(rows, log_probs=None, padding=PAD):
    """One sentence whose candidates are ``rows`` of ids, with padding behind the shorter ones."""
    width = max(map(len, rows))
    tokens = torch.tensor([[row + [padding] * (width - len(row)) for row in rows]])
    mask = torch.tensor([[[i < len(row) for i in range(width)] for row in rows]])
    if log_probs is None:
        log_probs = [[-1.0] * len(row) for row in rows]
    numbers = torch.tensor([[row + [0.0] * (width - len(row)) for row in log_probs]])
    return Candidates.of(Decoded(tokens, numbers, torch.tensor([3]), []), mask, torch.zeros(mask.shape[:2]))


def real(found):
    """Tokens and log-probabilities of each candidate at its real positions."""
    return [
        (tokens[mask].tolist(), numbers[mask].tolist())
        for tokens, numbers, mask in zip(found.tokens[0], found.log_probs[0], found.mask[0])
    ]


def test_a_run_becomes_one_token_with_the_best_of_its_log_probabilities():
    found = candidates([[5, 5, 6, 7, 7, 7, 5, 2]], [[-2.0, -1.0, -3.0, -6.0, -4.0, -5.0, -0.5, 0.0]]).merged(WORDS)
    assert real(found) == [([5, 6, 7, 5, 2], [-1.0, -3.0, -4.0, -0.5, 0.0])]


def test_candidates_without_repeats_stay_and_others_beside_them_do_not_matter():
    rows = [[4, 5, 4, 2], [8, 8, 8, 8, 8, 2], [2]]
    found = candidates(rows).merged(WORDS)
    assert [tokens for tokens, _ in real(found)] == [[4, 5, 4, 2], [8, 2], [2]]
    assert found.mask[0].sum(-1).tolist() == [4, 2, 1]
    assert all(bool((mask[:-1] >= mask[1:]).all()) for mask in found.mask[0]), "real tokens stand in front"


def test_padding_is_not_merged_with_words():
    """What stands at padding is of no account, even where it is the sentence's last token."""
    for padding in (PAD, 2, 9):
        found = candidates([[4, 9, 9], [4, 4, 5, 6, 2]], padding=padding).merged(WORDS)
        assert [tokens for tokens, _ in real(found)] == [[4, 9], [4, 5, 6, 2]]


def test_against_plain_python_on_random_ids():
    generator = torch.Generator().manual_seed(1)
    for width in (1, 2, 9):
        rows = [torch.randint(4, 7, (1 + i % width,), generator=generator).tolist() for i in range(40)]
        once = [[token for i, token in enumerate(row) if not i or token != row[i - 1]] for row in rows]
        assert [tokens for tokens, _ in real(candidates(rows).merged(WORDS))] == once


def test_places_and_history_are_those_that_were_decoded():
    before = candidates([[5, 5, 2]])
    after = before.merged(WORDS)
    assert torch.equal(after.places, before.mask) and after.history is before.history


def test_signs_may_repeat():
    found = candidates([[5, 25, 25, 6, 6, 25, 2]]).merged(WORDS)
    assert [tokens for tokens, _ in real(found)] == [[5, 25, 25, 6, 25, 2]]


def test_words_are_the_tokens_with_a_letter():
    symbols = {
        "+": False,
        "::": False,
        "1,000": False,
        "a": True,
        "ein@@": True,
        "x2": True,
        "été": True,
        "ß": True,
        "人": True,
    }
    known = Dictionary()
    for symbol in symbols:
        known.add_symbol(symbol)
    assert with_letters(known).tolist() == [False] * known.nspecial + list(symbols.values())
