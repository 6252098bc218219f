"""Paired bootstrap tests (Koehn, 2004) of differences between systems, two-sided, of one pair or of a mean over seeds.

Scores are sacreBLEU's, of sums of its statistics over sentences drawn with replacement.  Its own test,
``sacrebleu --paired-bs``, counts one side of the distribution: its p-values are about half of these.
"""

import functools
from typing import NamedTuple, Sequence

import numpy as np

from ..errors import FastDiSSError
from .scoring import ROUGE, rouge_of_sentences, sacrebleu_metric

RESAMPLES = 1000
SEED = 12345


class Difference(NamedTuple):
    """A difference of corpus scores, its 95 % interval over the sentences drawn, and its two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def resampled_scores(hypotheses: Sequence[str], references: Sequence[str], metric: str) -> np.ndarray:
    """Scores of a corpus and of :data:`RESAMPLES` corpora drawn from it, ``(1 + RESAMPLES,)``, in percent.

    The same sentences are drawn for all systems of as many sentences, so arrays of two systems are paired.

    Raises:
        FastDiSSError: other numbers of sentences.
    """
    if len(hypotheses) != len(references):
        raise FastDiSSError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    times = sentences_drawn(len(references))
    if metric in ROUGE:
        return times @ np.array(rouge_of_sentences(hypotheses, [references], metric)) / len(references)
    scorer = sacrebleu_metric(metric)
    statistics = np.array(scorer._extract_corpus_statistics(hypotheses, [references]), dtype=np.float64)
    return np.array([scorer._compute_score_from_stats(sums.tolist()).score for sums in times @ statistics])


@functools.lru_cache(maxsize=2)
def sentences_drawn(count: int) -> np.ndarray:
    """How often each of ``count`` sentences is drawn: once in the first row, at random in the others;
    ``(1 + RESAMPLES, count)``."""
    drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn]).astype(np.float32)


def difference_of(differences: np.ndarray) -> Difference:
    """The test of a difference, from that of the corpus and those of the corpora drawn, ``(1 + RESAMPLES,)``.

    p is how often a difference drawn strays from their mean by as much as the corpus' is from 0.
    """
    value, drawn = differences[0], differences[1:]
    beyond = np.abs(drawn - drawn.mean()) >= abs(value)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(value), float(low), float(high), float((1 + beyond.sum()) / (1 + len(drawn))))
