"""Paired bootstrap tests, and the contrasts of an ablation."""

import random

import numpy as np
import pytest

from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.tools import contrasts, rows, scoring
from fastdiss_fairseq.tools.significance import RESAMPLES, resampled_scores, sentences_drawn, difference_of

WORDS = "a man walks down the old street with his small brown dog".split()
SENTENCES = [" ".join(random.Random(number).choices(WORDS, k=8)) for number in range(60)]


def corrupted(sentences, which):
    """The sentences with one word replaced in the slice ``which``."""
    changed = [line.split() for line in sentences]
    for words in changed[which]:
        words[len(words) // 2] = "elephant"
    return [" ".join(words) for words in changed]


GOOD, BAD = corrupted(SENTENCES, slice(0, None, 5)), corrupted(SENTENCES, slice(None))


@pytest.fixture(params=["BLEU", "chrF", "ROUGE-1"])
def metric(request):
    pytest.importorskip("rouge_score" if request.param.startswith("ROUGE") else "sacrebleu")
    return request.param


def test_the_first_score_is_that_of_the_corpus(metric):
    scores = resampled_scores(GOOD, SENTENCES, metric)
    assert scores.shape == (1 + RESAMPLES,)
    assert round(scores[0], 2) == scoring.score(GOOD, [SENTENCES], [metric])[metric].value
    assert abs(scores[1:].mean() - scores[0]) < 1 and scores[1:].std() > 0.5


def test_a_corpus_drawn_is_scored_as_its_sentences_are(metric):
    drawn = sentences_drawn(len(SENTENCES))[7].astype(int)
    repeat = lambda lines: [line for line, times in zip(lines, drawn) for _ in range(times)]
    expected = scoring.score(repeat(GOOD), [repeat(SENTENCES)], [metric])[metric].value
    assert resampled_scores(GOOD, SENTENCES, metric)[7] == pytest.approx(expected, abs=0.01)


def test_better_alike_and_the_same(metric):
    scores = lambda lines: resampled_scores(lines, SENTENCES, metric)
    good = scores(GOOD)
    found = difference_of(good - scores(BAD))
    assert found.p < 0.01 and 0 < found.low < found.value < found.high
    assert difference_of(scores(BAD) - good).p == found.p  # two-sided
    alike = difference_of(good - scores(corrupted(GOOD, slice(1, 2))))  # worse in one sentence of sixty
    assert alike.p > 0.05 and alike.low <= 0 <= alike.high
    assert difference_of(good - good) == (0, 0, 0, 1)


def test_numbers_of_sentences_must_agree():
    with pytest.raises(FastDiSSError, match="60 hypotheses for 59 references"):
        resampled_scores(GOOD, SENTENCES[1:], "BLEU")


def test_one_null_hypothesis_in_twenty_is_refused():
    """Means of noise, whose true difference is none."""
    generator = np.random.default_rng(1)
    times = sentences_drawn(200) / 200
    refused = [difference_of(times @ generator.normal(size=200)).p <= 0.05 for _ in range(1000)]
    assert 0.03 < np.mean(refused) < 0.07


# The ablation


def record(system, how="previous", seed=1, steps=5, **fields):
    return {
        **dict.fromkeys(rows.ROW_FIELDS),
        "system": system,
        "self_conditioning": how,
        "seed": seed,
        "steps": steps,
        **fields,
    }


def scores_of(values):
    """Scores by system, self-conditioning and seed: the corpus', and drawn ones around it."""
    noise = np.random.default_rng(2).normal(scale=0.1, size=RESAMPLES)
    return lambda r: np.append(0, noise) + values[r["system"], r["self_conditioning"], r["seed"]]


def test_the_contrasts_are_means_over_seeds():
    values = {
        ("standard", "previous", 1): 20.0, ("standard", "recompute", 1): 21.0,
        ("standard", "previous", 2): 22.0, ("standard", "recompute", 2): 22.4,
        ("scp", "previous", 1): 20.5, ("scp", "recompute", 1): 20.75,
        ("scp", "previous", 2): 21.0, ("scp", "recompute", 2): 21.5,
        ("scp+mans", "previous", 2): 21.25,
    }  # fmt: skip
    found = list(contrasts.pooled([record(*key) for key in values], scores_of(values)))
    by_name = {each.name: each for each in found}
    value = lambda name: pytest.approx(by_name[name].mean.value)
    assert value("reusing costs: gap of standard") == 0.7
    assert by_name["reusing costs: gap of standard"].by_seed == {1: 1.0, 2: pytest.approx(0.4)}
    assert value("SCP closes it: gap of standard − gap of scp") == 0.325
    assert value("SCP: scp − standard") == -0.25
    assert value("MANS adds to SCP: scp+mans − scp") == 0.25  # of the one seed that has both
    assert set(by_name) == {
        "reusing costs: gap of standard", "SCP closes it: gap of standard − gap of scp", "SCP: scp − standard",
        "MANS adds to SCP: scp+mans − scp", "both: scp+mans − standard",
    }  # fmt: skip
    table = contrasts.pooled_table(found, "BLEU", "standard")
    assert "| contrast | K | seed 1 / 2 | mean | 95 % interval | p |" in table
    assert "| SCP: scp − standard | 5 | +0.50 / -1.00 | -0.25 | -0.25 to -0.25 |" in table
    assert "| both: scp+mans − standard | 5 | – / -0.75 |" in table


def test_settings_are_not_mixed():
    values = {("standard", 1): 20.0, ("scp", 1): 21.0, ("standard", 5): 25.0, ("scp", 5): 25.5}
    records = [
        record(system, steps=k, repeats=how, seed=seed)
        for system, k in values for how in ("keep", "merge") for seed in (1, 2)
    ]  # fmt: skip
    scores = lambda r: np.full(1 + RESAMPLES, values[r["system"], r["steps"]] + (r["repeats"] == "merge"))
    pooled = list(contrasts.pooled(records, scores))
    found = {(each.record["steps"], each.record["repeats"]): each.mean.value for each in pooled}
    assert found == {(1, "keep"): 1, (1, "merge"): 1, (5, "keep"): 0.5, (5, "merge"): 0.5}
    assert "scp − standard, keep | 1 | +1.00 / +1.00 |" in contrasts.pooled_table(pooled, "BLEU", "standard")


@pytest.mark.parametrize(
    "baseline, shown", [("standard", False), ("scp", False), ("mans", True), (None, True)], ids=str
)
def test_a_claim_is_told_though_no_baseline_is_named(baseline, shown):
    values = {("standard", "previous", 1): 20.0, ("scp", "previous", 1): 21.0}
    found = list(contrasts.pooled([record(*key) for key in values], scores_of(values)))
    assert [each.name for each in found] == ["SCP: scp − standard"]
    assert ("scp − standard" in contrasts.pooled_table(found, "BLEU", baseline)) == shown


def test_variants_of_several_seeds_are_tested_against_the_baseline_in_the_mean():
    values = {("standard", "previous", 1): 20.0, ("standard", "previous", 2): 22.0}
    values.update({("late", "previous", 1): 21.0, ("late", "previous", 2): 22.5, ("scp", "previous", 2): 23.0})
    found = list(contrasts.pooled([record(*key) for key in values], scores_of(values), "standard"))
    assert [(each.name, each.by_seed) for each in found] == [
        ("SCP: scp − standard", {2: 1.0}), ("late − standard", {1: 1.0, 2: 0.5}),
    ]  # fmt: skip
    assert "| late − standard | 5 | +1.00 / +0.50 | +0.75 |" in contrasts.pooled_table(found, "BLEU", "standard")


def test_systems_without_a_counterpart_are_named():
    ours = [record("standard", solver="ddim"), record("scp", solver="ddim"), record("mans", seed=2, solver="ddim")]
    records = [*ours, record("fsdfm", solver="euler")]
    pairs = contrasts.rivals(records, "standard")
    assert contrasts.untested(records, pairs, "standard").endswith("seed and settings: mans, fsdfm.")
    assert contrasts.untested(records[:2], pairs, "standard") == contrasts.untested(records, [], None) == ""


def test_records_of_one_system_make_no_table():
    values = {("standard", "previous", 1): 20.0, ("standard", "recompute", 1): 21.0}
    found = list(contrasts.pooled([record(*key) for key in values], scores_of(values)))
    assert len(found) == 1 and contrasts.pooled_table(found, "BLEU", "standard") == ""


def test_candidates_of_lengths_and_of_seeds_are_not_taken_for_each_other():
    """Ten are ten lengths, or five with two seeds."""
    hypotheses = lambda r: GOOD if r["length_beam"] == 10 else BAD
    records = [record("standard", length_beam=length, noise_beam=seeds) for length, seeds in ((10, 1), (5, 2))]
    scores = contrasts.cached_scores(hypotheses, lambda r: SENTENCES, "BLEU")
    assert scores(records[0])[0] > scores(records[1])[0] + 10
    assert rows.twin(records, records[0], noise_beam=2) is None
