"""Score text against raw references: sacreBLEU's BLEU and chrF, ROUGE, metrics of single tasks, and significance.

    fastdiss-score generate.txt data-bin/multi30k_de_en/raw/test.en

scores the D- lines of fairseq-generate (detokenised if it ran with ``--tokenizer moses``) in the
order of their sentence ids and prints JSON.
"""

import argparse
import itertools
import json
import random
import re
import sys
from typing import Dict, List, NamedTuple, Optional, Sequence

from ..compat import FastDiSSError
from ..generation.config import REPEATS
from . import task_metrics
from .command import run_as_command

HYPOTHESIS = re.compile(r"D-(\d+)\t[^\t]*\t(.*)")
PIECE = re.compile(r"\S@@( |$)")  # of a word, by subword-nmt
MOSES_TOKENS = re.compile(r"\S ([.,:;!?]|'s|&apos;s|n't|n&apos;t)( |$)")
ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
METRICS = ("BLEU", "chrF", *ROUGE)
#: Metrics that single tasks are reported with: BLEU of Moses tokens, also with words split at hyphens; the mean of
#: sentences' BLEU; SARI.
TASK_METRICS = ("tokBLEU", "compoundBLEU", "sentenceBLEU", "SARI")
RESAMPLES = 1000


class Score(NamedTuple):
    """A corpus score in percent, and the signature that says how it was computed."""

    value: float
    signature: str


def read_lines(path) -> List[str]:
    """The lines of a text file; only a line feed ends a line."""
    try:
        with open(path, encoding="utf-8", newline="\n") as stream:
            return [line.rstrip("\r\n") for line in stream]
    except (OSError, UnicodeDecodeError) as error:
        raise FastDiSSError(f"cannot read {path}: {error}") from None


def read_hypotheses(path) -> List[str]:
    """The D- lines of a fairseq-generate output in the order of their sentence ids."""
    found: Dict[int, str] = {}
    for match in filter(None, map(HYPOTHESIS.fullmatch, read_lines(path))):
        number = int(match.group(1))
        if number in found:
            raise FastDiSSError(f"{path}: sentence {number} occurs twice (--nbest above 1?)")
        found[number] = match.group(2)
    if not found:
        raise FastDiSSError(f"{path}: no D- lines, so this is no output of fairseq-generate")
    if any(PIECE.search(line) for line in found.values()):
        print(
            f"{path} has pieces of words (@@): decode with --post-process subword_nmt to score words", file=sys.stderr
        )
    return [found[number] for number in sorted(found)]


def merged(lines: Sequence[str]) -> List[str]:
    """Tokenised lines, each word that is said several times in a row said once, as ``--decoding-repeats merge`` has it of
    tokens: signs and numbers stay."""

    def once(word: str, run) -> List[str]:
        return [word] if any(map(str.isalpha, word)) else list(run)

    return [" ".join(itertools.chain(*(once(*group) for group in itertools.groupby(line.split())))) for line in lines]


def text_of(path, lang: Optional[str], repeats: str = "keep") -> List[str]:
    """The hypotheses of a fairseq-generate output as text to be scored.

    Args:
        lang: as in :func:`detokenise`.
        repeats: ``keep`` or ``merge``, before that.
    """
    lines = read_hypotheses(path)
    return detokenise(merged(lines) if repeats == "merge" else lines, lang)


def look_tokenised(hypotheses: Sequence[str], references: Sequence[str]) -> bool:
    """Whether many of the hypotheses, and few of the references, have signs apart from the word before them."""
    apart = [sum(map(bool, map(MOSES_TOKENS.search, lines))) / max(len(lines), 1) for lines in (hypotheses, references)]
    return apart[0] > 0.5 and apart[1] < 0.1


def detokenise(lines: Sequence[str], lang: Optional[str]) -> List[str]:
    """Undo Moses tokenisation of this language; None or ``none``: the lines are text already."""
    if lang in (None, "none"):
        return list(lines)
    from sacremoses import MosesDetokenizer

    detokenizer = MosesDetokenizer(lang)
    return [detokenizer.detokenize(line.split()) for line in lines]


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str],
    lang: str = "en",
    sources: Optional[Sequence[str]] = None,
) -> Dict[str, Score]:
    """Corpus scores of detokenised hypotheses, one for each reference.

    Args:
        metrics: names of :data:`METRICS` or :data:`TASK_METRICS`.
        lang: the language, for the metrics that tokenise as Moses does.
        sources: raw sources, which SARI needs.

    Raises:
        FastDiSSError: another number of references or sources, an unknown metric, or ROUGE not installed.
    """
    check_metrics(metrics, METRICS + TASK_METRICS)
    if len(hypotheses) != len(references):
        raise FastDiSSError(f"{len(hypotheses)} hypotheses but {len(references)} references")
    scores = {}
    for name in metrics:
        if name in TASK_METRICS:
            scores[name] = task_score(name, hypotheses, references, lang, sources)
        elif name in ROUGE:
            values = rouge_of_sentences(hypotheses, references, name)
            scores[name] = Score(round(sum(values) / len(values), 2), rouge_signature())
        else:
            metric = sacrebleu_metric(name)
            value = metric.corpus_score(hypotheses, [references]).score
            scores[name] = Score(round(value, 2), str(metric.get_signature()))
    return scores


def task_score(name: str, hypotheses, references, lang: str, sources) -> Score:
    """A score of :data:`TASK_METRICS`."""
    if name == "SARI":
        if sources is None or len(sources) != len(hypotheses):
            raise FastDiSSError(f"SARI needs the sources (--source), one for each of the {len(hypotheses)} hypotheses")
        value = task_metrics.sari(sources, hypotheses, [[line] for line in references])
        return Score(round(value, 2), "nrefs:1|case:lc|tok:13a|mean over sentences")
    if name == "sentenceBLEU":
        value = task_metrics.sentence_bleu(hypotheses, references, lang)
        return Score(round(value, 2), "nrefs:1|case:lc|tok:moses|smooth:nltk-4|mean over sentences")
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    split = name == "compoundBLEU"
    texts = [task_metrics.moses_tokens(lines, lang, split) for lines in (hypotheses, references)]
    value = metric.corpus_score(texts[0], [texts[1]]).score
    return Score(round(value, 2), str(metric.get_signature()).replace("tok:none", "tok:moses" + "-compound" * split))


def check_metrics(metrics: Sequence[str], known: Sequence[str] = METRICS) -> None:
    """Raise FastDiSSError at an unknown metric."""
    for name in metrics:
        if name not in known:
            raise FastDiSSError(f"unknown metric '{name}' (known: {', '.join(known)})")


def sacrebleu_metric(name: str):
    """A new sacreBLEU metric with default settings."""
    from sacrebleu.metrics import BLEU, CHRF

    return {"BLEU": BLEU, "chrF": CHRF}[name]()


def rouge_of_sentences(hypotheses: Sequence[str], references: Sequence[str], name: str) -> List[float]:
    """Each sentence's ROUGE F1 x 100 with Porter's stemmer."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise FastDiSSError("ROUGE needs rouge-score: pip install rouge-score") from None
    key = ROUGE[name]
    scorer = RougeScorer([key], use_stemmer=True)
    return [100 * scorer.score(ref, hyp)[key].fmeasure for hyp, ref in zip(hypotheses, references)]


def rouge_signature() -> str:
    from importlib.metadata import version

    return f"rouge-score:{version('rouge-score')}|stemmer:yes|F1|mean over sentences"


def paired_bootstrap(hypotheses: Sequence[str], others: Sequence[str], references: Sequence[str], metric: str) -> float:
    """The p-value of the difference of two systems (Koehn, 2004), with 1,000 resamples; 1 where there is none.

    BLEU and chrF through sacreBLEU's PairedTest; ROUGE, a mean over sentences, by the same rule on
    the sentences' differences.

    Raises:
        FastDiSSError: other numbers of sentences.
    """
    if not len(hypotheses) == len(others) == len(references):
        raise FastDiSSError(f"{len(hypotheses)} and {len(others)} hypotheses for {len(references)} references")
    if metric in ROUGE:
        pairs = zip(*(rouge_of_sentences(lines, references, metric) for lines in (hypotheses, others)))
        return bootstrap_of_means([a - b for a, b in pairs])
    from sacrebleu.significance import PairedTest

    systems = [("baseline", list(others)), ("system", list(hypotheses))]
    metrics = {metric: sacrebleu_metric(metric)}
    _, results = PairedTest(systems, metrics, [list(references)], test_type="bs", n_samples=RESAMPLES)()
    baseline, system = next(found for name, found in results.items() if name != "System")
    return 1.0 if system.score == baseline.score else float(system.p_value)


def bootstrap_of_means(differences: Sequence[float]) -> float:
    """How often a resampled mean strays from the mean as far as the mean does from 0."""
    generator = random.Random(12345)
    mean = sum(differences) / len(differences)
    means = [sum(generator.choices(differences, k=len(differences))) / len(differences) for _ in range(RESAMPLES)]
    return (1 + sum(abs(resampled - mean) >= abs(mean) for resampled in means)) / (1 + RESAMPLES)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generated", help="output file of fairseq-generate")
    parser.add_argument("reference", help="raw reference, one sentence a line")
    parser.add_argument(
        "--detokenize", metavar="LANG", help="undo Moses tokenisation first: for fairseq-generate without --tokenizer"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["BLEU", "chrF"],
        metavar="NAME",
        help=f"of {', '.join(METRICS + TASK_METRICS)} (the last needs --source)",
    )
    parser.add_argument(
        "--repeats",
        default="keep",
        choices=REPEATS,
        help="words said several times in a row: as they are (keep, the default), or once",
    )
    parser.add_argument("--source", metavar="FILE", help="raw source, one sentence a line")
    return parser


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    hypotheses = text_of(args.generated, args.detokenize, args.repeats)
    references, sources = read_lines(args.reference), read_lines(args.source) if args.source else None
    if not args.detokenize and look_tokenised(hypotheses, references):
        print(f"{args.generated} looks tokenised and {args.reference} does not: add --detokenize", file=sys.stderr)
    scores = score(hypotheses, references, args.metrics, args.detokenize or "en", sources)
    result = {name: found._asdict() for name, found in scores.items()}
    print(json.dumps({"sentences": len(hypotheses), **result}, indent=2))


def cli_main():
    run_as_command(main)
