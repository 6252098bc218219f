"""Score text against raw references: sacreBLEU's BLEU and chrF, ROUGE and metrics of single tasks.

    fastdiss-score generate.txt data-bin/multi30k_de_en/raw/test.en

scores the D- lines of fairseq-generate (detokenised if it ran with ``--tokenizer moses``) in the
order of their sentence ids and prints JSON.  Several references, as ASSET's ten: name all their files.
"""

import argparse
import itertools
import json
import re
import sys
from typing import Dict, List, NamedTuple, Optional, Sequence

from ..errors import FastDiSSError
from ..generation.config import REPEATS
from . import task_metrics
from .command import run_as_command

HYPOTHESIS = re.compile(r"D-(\d+)\t[^\t]*\t(.*)")
PIECE = re.compile(r"\S@@( |$)")  # of a word, by subword-nmt
MOSES_TOKENS = re.compile(r"\S ([.,:;!?]|'s|&apos;s|n't|n&apos;t)( |$)")
ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
METRICS = ("BLEU", "chrF", *ROUGE)
#: Metrics that single tasks are reported with: BLEU of Moses tokens, also with words split at hyphens; the mean of
#: sentences' BLEU; the share of a sentence's tokens that are not said before in it; SARI.
TASK_METRICS = ("tokBLEU", "compoundBLEU", "sentenceBLEU", "dist-1", "SARI")


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
    return [found[number] for number in sorted(found)]


def warn_of_pieces(path, hypotheses: Sequence[str]) -> None:
    """Say it where the hypotheses of a file are no words."""
    if any(map(PIECE.search, hypotheses)):
        print(
            f"{path} has pieces of words (@@): decode with --post-process subword_nmt to score words", file=sys.stderr
        )


def merged(lines: Sequence[str]) -> List[str]:
    """Tokenised lines, each word that is said several times in a row said once, as ``--decoding-repeats merge`` has it of
    tokens: signs and numbers stay."""

    def once(word: str, run) -> List[str]:
        return [word] if any(map(str.isalpha, word)) else list(run)

    return [" ".join(itertools.chain(*(once(*group) for group in itertools.groupby(line.split())))) for line in lines]


def text_of(lines: Sequence[str], lang: Optional[str], repeats: str = "keep") -> List[str]:
    """The hypotheses of a fairseq-generate output as text to be scored.

    Args:
        lang: as in :func:`detokenise`.
        repeats: ``keep`` or ``merge``, before that.
    """
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
    references: Sequence[Sequence[str]],
    metrics: Sequence[str],
    lang: str = "en",
    sources: Optional[Sequence[str]] = None,
) -> Dict[str, Score]:
    """Corpus scores of detokenised hypotheses.

    Args:
        references: one or more lists, as sacreBLEU takes them; each has one reference for each hypothesis.
        metrics: names of :data:`METRICS` or :data:`TASK_METRICS`.
        lang: the language, for the metrics that tokenise as Moses does.
        sources: raw sources, which SARI needs.

    Raises:
        FastDiSSError: another number of references or sources, or as :func:`check_metrics`.
    """
    check_metrics(metrics, METRICS + TASK_METRICS)
    for lines in references:
        if len(hypotheses) != len(lines):
            raise FastDiSSError(f"{len(hypotheses)} hypotheses but {len(lines)} references")
    scores = {}
    for name in metrics:
        if name in TASK_METRICS:
            value, signature = task_score(name, hypotheses, references, lang, sources)
        elif name in ROUGE:
            values = rouge_of_sentences(hypotheses, references, name)
            value, signature = sum(values) / len(values), rouge_signature(len(references))
        else:
            value, signature = sacrebleu_score(sacrebleu_metric(name), hypotheses, references)
        scores[name] = Score(round(value, 2), signature)
    return scores


def task_score(name: str, hypotheses, references, lang: str, sources) -> Score:
    """A score of :data:`TASK_METRICS`, not rounded."""
    mean = f"nrefs:{len(references)}|case:lc|tok:{{}}|mean over sentences".format
    if name == "SARI":
        if sources is None or len(sources) != len(hypotheses):
            raise FastDiSSError(f"SARI needs the sources (--source), one for each of the {len(hypotheses)} hypotheses")
        return Score(task_metrics.sari(sources, hypotheses, list(zip(*references))), mean("13a"))
    if name == "sentenceBLEU":
        value = task_metrics.sentence_bleu(hypotheses, list(zip(*references)), lang)
        return Score(value, mean(f"moses-{lang}|smooth:nltk-4"))
    if name == "dist-1":
        return Score(task_metrics.distinct(hypotheses, lang), f"case:lc|tok:moses-{lang}|mean over sentences")
    from sacrebleu.metrics import BLEU

    split = name == "compoundBLEU"
    hypotheses, *references = (task_metrics.moses_tokens(lines, lang, split) for lines in (hypotheses, *references))
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    value, signature = sacrebleu_score(metric, hypotheses, references)
    return Score(value, signature.replace("tok:none", f"tok:moses-{lang}" + "-compound" * split))


def sacrebleu_score(metric, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The score by a metric of sacreBLEU, not rounded."""
    value = metric.corpus_score(hypotheses, references).score
    return Score(value, str(metric.get_signature()))


def check_metrics(metrics: Sequence[str], known: Sequence[str] = METRICS) -> None:
    """Raise FastDiSSError at an unknown metric, or at ROUGE where it is not installed."""
    for name in metrics:
        if name not in known:
            raise FastDiSSError(f"unknown metric '{name}' (known: {', '.join(known)})")
        if name in ROUGE:
            rouge_scorer()


def sacrebleu_metric(name: str):
    """A new sacreBLEU metric with default settings."""
    from sacrebleu.metrics import BLEU, CHRF

    return {"BLEU": BLEU, "chrF": CHRF}[name]()


def rouge_scorer():
    """rouge-score's class.

    Raises:
        FastDiSSError: it is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise FastDiSSError("ROUGE needs rouge-score: pip install rouge-score") from None
    return RougeScorer


def rouge_of_sentences(hypotheses: Sequence[str], references: Sequence[Sequence[str]], name: str) -> List[float]:
    """Each sentence's ROUGE F1 x 100 with Porter's stemmer, by the reference that it is best by."""
    key = ROUGE[name]
    scorer = rouge_scorer()([key], use_stemmer=True)
    return [100 * scorer.score_multi(refs, hyp)[key].fmeasure for hyp, *refs in zip(hypotheses, *references)]


def rouge_signature(count: int) -> str:
    """What says how ROUGE was computed, by ``count`` references."""
    from importlib.metadata import version

    best = "" if count == 1 else f"best of {count} references|"
    return f"rouge-score:{version('rouge-score')}|stemmer:yes|F1|{best}mean over sentences"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generated", help="output file of fairseq-generate")
    parser.add_argument("references", nargs="+", metavar="reference", help="raw references, one sentence a line")
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
    parser.add_argument(
        "--lang",
        help="language of the metrics that tokenise as Moses does: tokBLEU, compoundBLEU, sentenceBLEU, dist-1 (default: "
        "that of --detokenize, else en)",
    )
    parser.add_argument("--source", metavar="FILE", help="raw source, one sentence a line")
    return parser


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    given = read_hypotheses(args.generated)
    warn_of_pieces(args.generated, given)
    hypotheses = text_of(given, args.detokenize, args.repeats)
    references, sources = list(map(read_lines, args.references)), read_lines(args.source) if args.source else None
    if not args.detokenize and look_tokenised(hypotheses, references[0]):
        print(f"{args.generated} looks tokenised and {args.references[0]} does not: add --detokenize", file=sys.stderr)
    detokenised = args.detokenize if args.detokenize != "none" else None
    scores = score(hypotheses, references, args.metrics, args.lang or detokenised or "en", sources)
    result = {name: found._asdict() for name, found in scores.items()}
    print(json.dumps({"sentences": len(hypotheses), **result}, indent=2))


def cli_main():
    run_as_command(main)
