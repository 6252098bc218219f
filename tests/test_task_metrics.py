"""Metrics of single tasks, against published values and by hand."""

import pytest

from fastdiss_fairseq.compat import FastDiSSError
from fastdiss_fairseq.tools import scoring, task_metrics

SOURCE = "About 95 species are currently accepted ."
REFERENCES = [
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
]


def test_sari_is_that_of_the_metric_card():
    """The examples in the documentation of Hugging Face's `sari` and `wiki_split`."""
    hypothesis = "About 95 you now get in ."
    assert task_metrics.sari([SOURCE], [hypothesis], [REFERENCES]) == pytest.approx(26.953601953601954)
    assert task_metrics.sari([SOURCE], [hypothesis], [REFERENCES[:1]]) == pytest.approx(21.805555555555557)


def test_sari_of_copies_and_of_nothing():
    assert task_metrics.sari([SOURCE], [SOURCE], [[SOURCE]]) == pytest.approx(100)
    assert task_metrics.sari([SOURCE], [REFERENCES[0]], [REFERENCES[:1]]) == pytest.approx(100)
    assert task_metrics.sari([SOURCE], [SOURCE], [REFERENCES[:1]]) < 65
    assert 0 <= task_metrics.sari([SOURCE], [""], [REFERENCES[:1]]) < 50


def test_sari_does_not_see_case_and_needs_sources():
    scores = scoring.score(["A B c"], ["a b C"], ["SARI"], sources=["a b c d"])
    assert scores["SARI"].value == 100
    for sources in (None, ["a", "b"]):
        with pytest.raises(FastDiSSError, match="--source"):
            scoring.score(["a"], ["a"], ["SARI"], sources=sources)


def test_tokenised_bleu_is_on_moses_tokens():
    hypothesis, reference = "Er sagte: »Ja!«, im Rhein-Main-Gebiet.", "Er sagte: »Ja!«, im Rhein-Neckar-Gebiet."
    assert task_metrics.moses_tokens([hypothesis], "de") == ["Er sagte : » Ja ! « , im Rhein-Main-Gebiet ."]
    assert task_metrics.moses_tokens(["Rhein-Main & co"], "de", split_compounds=True) == [
        "Rhein ##AT##-##AT## Main & co"
    ]
    scores = scoring.score([hypothesis], [reference], ["tokBLEU", "compoundBLEU"], "de")
    assert {name: found.value for name, found in scores.items()} == {"tokBLEU": 80.71, "compoundBLEU": 80.03}
    assert "tok:moses|smooth:none" in scores["tokBLEU"].signature
    assert "tok:moses-compound|" in scores["compoundBLEU"].signature
    assert scoring.score([reference], [reference], ["compoundBLEU"], "de")["compoundBLEU"].value == 100


def test_sentence_bleu_is_a_mean_in_lower_case():
    pytest.importorskip("nltk")
    value = lambda hypotheses, references: scoring.score(hypotheses, references, ["sentenceBLEU"])["sentenceBLEU"].value
    assert value(["How do I learn it?"], ["how do i learn it?"]) == 100
    assert value(["How do I learn it?", ""], ["How do I learn it?", "x y"]) == 50


def test_unknown_metrics_are_refused():
    with pytest.raises(FastDiSSError, match="known: BLEU, .*SARI"):
        scoring.score(["a"], ["a"], ["METEOR"])
    with pytest.raises(FastDiSSError, match="unknown metric 'SARI'"):
        scoring.check_metrics(["SARI"])  # sweeps have no sources
