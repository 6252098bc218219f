"""Metrics of single tasks, against published values and by hand."""

import json

import pytest
from test_tools import tool

from fastdiss_fairseq.errors import FastDiSSError
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
    scores = scoring.score(["A B c"], [["a b C"]], ["SARI"], sources=["a b c d"])
    assert scores["SARI"].value == 100
    for sources in (None, ["a", "b"]):
        with pytest.raises(FastDiSSError, match="--source"):
            scoring.score(["a"], [["a"]], ["SARI"], sources=sources)


def test_tokenised_bleu_is_on_moses_tokens():
    hypothesis, reference = "Er sagte: »Ja!«, im Rhein-Main-Gebiet.", "Er sagte: »Ja!«, im Rhein-Neckar-Gebiet."
    assert task_metrics.moses_tokens([hypothesis], "de") == ["Er sagte : » Ja ! « , im Rhein-Main-Gebiet ."]
    assert task_metrics.moses_tokens(["Rhein-Main & co"], "de", split_compounds=True) == [
        "Rhein ##AT##-##AT## Main & co"
    ]
    scores = scoring.score([hypothesis], [[reference]], ["tokBLEU", "compoundBLEU"], "de")
    assert {name: found.value for name, found in scores.items()} == {"tokBLEU": 80.71, "compoundBLEU": 80.03}
    assert "tok:moses-de|smooth:none" in scores["tokBLEU"].signature
    in_french = ["un homme mange ici ce soir ."], [["l'homme mange ici ce soir ."]], ["tokBLEU"]
    assert [scoring.score(*in_french, lang)["tokBLEU"].value for lang in ("en", "fr")] == [61.48, 80.91]
    assert "tok:moses-de-compound|" in scores["compoundBLEU"].signature
    assert scoring.score([reference], [[reference]], ["compoundBLEU"], "de")["compoundBLEU"].value == 100


def test_sentence_bleu_is_a_mean_in_lower_case():
    pytest.importorskip("nltk")
    value = lambda hypotheses, references: (
        scoring.score(hypotheses, [references], ["sentenceBLEU"])["sentenceBLEU"].value
    )
    assert value(["How do I learn it?"], ["how do i learn it?"]) == 100
    assert value(["How do I learn it?", ""], ["How do I learn it?", "x y"]) == 50


def test_distinct_words_are_counted_in_each_sentence():
    scores = scoring.score(["The the cat", "a dog", ""], [["x"] * 3], ["dist-1"])
    assert scores["dist-1"].value == pytest.approx(100 * (2 / 3 + 1 + 0) / 3, abs=0.01)


@pytest.mark.parametrize("metric", ["BLEU", "chrF", "ROUGE-L", *scoring.TASK_METRICS])
def test_several_references(metric):
    """Each hypothesis is one of its references, the other is not like it."""
    pytest.importorskip({"ROUGE-L": "rouge_score", "sentenceBLEU": "nltk"}.get(metric, "sacrebleu"))
    right, wrong = ["one two three four five", "six seven eight nine ten"], ["alpha beta"] * 2
    of = lambda *references: scoring.score(right, references, [metric], sources=["one two"] * 2)[metric]
    mixed = of([right[0], wrong[0]], [wrong[1], right[1]])
    if metric == "dist-1":
        assert mixed == of(wrong)
    else:
        assert of(right).value >= mixed.value > of(wrong).value
        assert mixed.value == 100 or metric == "SARI"
        assert any(word in mixed.signature for word in ("nrefs:2|", "best of 2 references|"))
        assert mixed.signature != of(right).signature


def test_several_references_on_the_command_line(tmp_path):
    (tmp_path / "out").write_text("D-1\t0\tfive six seven eight\nD-0\t0\tone two three four\n")
    (tmp_path / "a").write_text("one two three four\nx\n")
    (tmp_path / "b").write_text("y\nfive six seven eight\n")
    score = lambda *files: json.loads(tool("scoring", *(tmp_path / file for file in ("out", *files))).stdout)["BLEU"]
    assert score("a", "b")["value"] == pytest.approx(100) and "nrefs:2" in score("a", "b")["signature"]
    assert score("a")["value"] < 70
    (tmp_path / "c").write_text("one\n")
    assert (
        "2 hypotheses but 1 references"
        in tool("scoring", *(tmp_path / f for f in ("out", "a", "c")), check=False).stderr
    )


def test_unknown_metrics_are_refused():
    with pytest.raises(FastDiSSError, match="known: BLEU, .*SARI"):
        scoring.score(["a"], [["a"]], ["METEOR"])
    with pytest.raises(FastDiSSError, match="unknown metric 'SARI'"):
        scoring.check_metrics(["SARI"])  # sweeps have no sources
