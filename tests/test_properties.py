"""Properties of choosing by MBR, of predicted lengths, and of splitting data and lines."""

import numpy as np
import torch
from helpers import task
from hypothesis import given
from hypothesis import strategies as st

from fastdiss_fairseq.generation.choice import mbr
from fastdiss_fairseq.modules.length import LengthPredictor
from fastdiss_fairseq.tasks.fastdiss import readable

SENTENCES = st.lists(st.lists(st.integers(4, 8), min_size=0, max_size=8), min_size=1, max_size=6)


def utilities(candidates, width=9):
    """MBR of one sentence's candidates, each ended by </s> (2)."""
    rows = [candidate + [2] for candidate in candidates]
    tokens = torch.tensor([[row + [1] * (width - len(row)) for row in rows]])
    return mbr(tokens, tokens.ne(1), [2])[0].tolist()


@given(candidates=SENTENCES, extra=st.integers(0, 4), data=st.data())
def test_mbr_ignores_order_and_padding_and_lies_between_0_and_1(candidates, extra, data):
    found = utilities(candidates)
    assert all(0 <= value <= 1 + 1e-9 for value in found)
    assert np.allclose(found, utilities(candidates, 9 + extra), atol=1e-12)
    order = data.draw(st.permutations(range(len(candidates))))
    assert np.allclose([found[i] for i in order], utilities([candidates[i] for i in order]), atol=1e-12)


@given(candidate=st.lists(st.integers(4, 8), min_size=1, max_size=8), copies=st.integers(2, 5))
def test_mbr_of_copies_is_one(candidate, copies):
    assert np.allclose(utilities([candidate] * copies), 1)


@given(
    source=st.integers(1, 90),
    beam=st.integers(1, 40),
    longest=st.integers(1, 64),
    offset=st.integers(1, 20),
    seed=st.integers(0, 99),
    factor=st.sampled_from([1.0, 0.1, 0.5, 0.9, 1.06, 3.0]),
)
def test_predicted_lengths_can_be_decoded_and_none_comes_twice_while_there_are_others(
    source, beam, longest, offset, seed, factor
):
    predictor = LengthPredictor(4, offset)
    beam = min(beam, predictor.offsets)
    logits = torch.randn(1, 2 * offset + 1, generator=torch.Generator().manual_seed(seed))
    found = predictor.top(logits, torch.tensor([source]), beam, longest, factor)[0][0].tolist()
    predicted = [length for length in range(source - offset, source + offset + 1) if 1 <= length <= longest]
    possible = {min(max(round(float(np.float32(length) * np.float32(factor))), 1), longest) for length in predicted}
    assert len(found) == beam and all(1 <= length <= longest for length in found)
    assert len(set(found)) == max(1, min(beam, len(possible)))


@given(sentences=st.integers(0, 60), shards=st.integers(1, 70))
def test_every_sentence_is_in_one_shard(sentences, shards):
    known = object()
    found, empty = [], 0
    for shard in range(shards):
        own = task(num_shards=shards, shard_id=shard)
        own.datasets["test"] = known
        try:
            found += own.filter_indices_by_size(np.arange(sentences), known).tolist()
        except SystemExit as end:
            assert end.code == 0
            empty += 1
    assert sorted(found) == list(range(sentences)) and empty == max(shards - sentences, 0)


@given(line=st.text(alphabet="ab \t", max_size=400), limit=st.integers(1, 40))
def test_what_is_read_of_a_line_is_its_beginning(line, limit):
    read = readable(line, limit)
    assert len(read.split()) <= max(limit, len(line.split()) if len(line) <= limit else 0)
    for kept, word in zip(read.split(), line.split()):
        assert word.startswith(kept)
    if len(line) <= limit:
        assert read == line
