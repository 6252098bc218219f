#!/usr/bin/env python3
"""Score the output of fairseq-generate against a raw reference file.

    score.py generate.txt data-bin/multi30k_de_en/raw/test.en

Reads the D- lines (detokenised if fairseq-generate ran with `--tokenizer moses`) in the
order of their sentence ids and prints JSON with BLEU and chrF, with sacreBLEU's signatures.
"""

import argparse
import json
import re
import sys

HYPOTHESIS = re.compile(r"D-(\d+)\t[^\t]*\t(.*)")


class ScoringError(Exception):
    """A problem that one line explains to the user."""


def read_lines(path):
    """The lines of a text file; only a line feed ends a line."""
    with open(path, encoding="utf-8", newline="\n") as stream:
        return [line.rstrip("\r\n") for line in stream]


def read_hypotheses(path):
    """The D- lines of a fairseq-generate output in the order of their sentence ids."""
    found = {}
    for match in filter(None, map(HYPOTHESIS.fullmatch, read_lines(path))):
        number = int(match.group(1))
        if number in found:
            raise ScoringError(f"{path}: sentence {number} occurs twice (--nbest above 1?)")
        found[number] = match.group(2)
    if not found:
        raise ScoringError(f"{path}: no D- lines, so this is no output of fairseq-generate")
    return [found[number] for number in sorted(found)]


def detokenise(lines, lang):
    """Undo Moses tokenisation."""
    try:
        from sacremoses import MosesDetokenizer
    except ImportError:
        raise ScoringError("--detokenize needs sacremoses: pip install sacremoses") from None
    detokenizer = MosesDetokenizer(lang)
    return [detokenizer.detokenize(line.split()) for line in lines]


def rouge_scores(hypotheses, references):
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L F1 x 100, with Porter's stemmer."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ScoringError("--rouge needs rouge-score: pip install rouge-score") from None
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    scored = [scorer.score(ref, hyp) for hyp, ref in zip(hypotheses, references)]
    return {
        name: round(100 * sum(item[name].fmeasure for item in scored) / len(scored), 2)
        for name in names
    }


def score(hypotheses, references, rouge=False):
    """Corpus scores of detokenised hypotheses, one for each reference, as a dictionary."""
    if len(hypotheses) != len(references):
        raise ScoringError(f"{len(hypotheses)} hypotheses but {len(references)} references")
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise ScoringError("please install sacrebleu: pip install sacrebleu") from None
    result = {"sentences": len(references)}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        result[name] = round(metric.corpus_score(hypotheses, [references]).score, 2)
        result[f"{name}_signature"] = str(metric.get_signature())
    if rouge:
        result.update(rouge_scores(hypotheses, references))
    return result


def get_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generated", help="output file of fairseq-generate")
    parser.add_argument("reference", help="raw reference, one sentence a line")
    parser.add_argument(
        "--detokenize",
        metavar="LANG",
        help="undo Moses tokenisation first: for fairseq-generate without --tokenizer",
    )
    parser.add_argument("--rouge", action="store_true", help="ROUGE-1, -2 and -L F1 as well")
    return parser


def main(argv=None):
    """Command-line entry; problems become one line on stderr and exit code 1."""
    args = get_parser().parse_args(argv)
    try:
        hypotheses = read_hypotheses(args.generated)
        if args.detokenize:
            hypotheses = detokenise(hypotheses, args.detokenize)
        result = score(hypotheses, read_lines(args.reference), args.rouge)
    except (ScoringError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"score: {error}")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
