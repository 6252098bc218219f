"""Metrics that single tasks are reported with, where sacreBLEU and rouge-score have none."""

import re
from collections import Counter
from typing import List, Sequence

from ..errors import FastDiSSError


def moses_tokens(lines: Sequence[str], lang: str, split_compounds: bool = False) -> List[str]:
    """Lines as Moses tokenises them, tokens separated by spaces.

    Args:
        split_compounds: also split words at hyphens, as fairseq's ``compound_split_bleu.sh`` does for WMT14 En-De.
    """
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(lang)
    found = [tokenizer.tokenize(line, return_str=True, escape=False) for line in lines]
    return [re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line) for line in found] if split_compounds else found


def tokens_of(lines: Sequence[str], lang: str) -> List[List[str]]:
    """The Moses tokens of lines in lower case."""
    return [line.split() for line in moses_tokens([line.lower() for line in lines], lang)]


def sentence_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], lang: str) -> float:
    """The mean of the sentences' BLEU x 100, in lower case and with NLTK's smoothing 4, as DiffuSeq reports it (there of
    words between spaces, here of Moses tokens).

    Args:
        references: one or more for each sentence.
    """
    try:
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    except ImportError:
        raise FastDiSSError("sentenceBLEU needs nltk: pip install nltk") from None
    smoothing = SmoothingFunction().method4
    columns = (tokens_of(lines, lang) for lines in (hypotheses, *zip(*references)))
    scores = [
        sentence_bleu(several, hypothesis, smoothing_function=smoothing) if hypothesis else 0.0
        for hypothesis, *several in zip(*columns)
    ]
    return 100 * sum(scores) / len(scores)


def distinct(hypotheses: Sequence[str], lang: str) -> float:
    """The mean over sentences of the share of tokens x 100 that are not said before in the sentence, in lower case: the
    dist-1 of DiffuSeq (there of words between spaces, here of Moses tokens).  Empty sentences count 0."""
    scores = [len(set(tokens)) / max(len(tokens), 1) for tokens in tokens_of(hypotheses, lang)]
    return 100 * sum(scores) / len(scores)


def sari(sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean of the sentences' SARI x 100 (Xu et al., 2016, section 4), in lower case and on sacreBLEU's 13a tokens.

    Kept n-grams are recalled by their number, as in Hugging Face's ``evaluate``, not by their kinds, as in the authors'
    first script.

    Args:
        references: one or more for each sentence.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer = Tokenizer13a()
    tokens = lambda line: tokenizer(line.lower()).split()
    scores = [
        sentence_sari(tokens(source), tokens(hypothesis), [tokens(line) for line in several])
        for source, hypothesis, several in zip(sources, hypotheses, references)
    ]
    return 100 * sum(scores) / len(scores)


def sentence_sari(source: List[str], hypothesis: List[str], references: Sequence[List[str]], orders: int = 4) -> float:
    """SARI of one tokenised sentence: the mean over n-gram orders of keep's F1, deletion's precision and addition's F1."""
    total = 0.0
    for n in range(1, orders + 1):
        repeat = len(references)
        wanted = sum((ngrams(reference, n) for reference in references), Counter())
        had, has = (multiply(ngrams(tokens, n), repeat) for tokens in (source, hypothesis))
        kept, worth_keeping = had & has, had & wanted
        rightly_kept = kept & wanted
        recall = ratio(sum(rightly_kept.values()), sum(worth_keeping.values()))
        total += f1(mean_share(rightly_kept, kept), recall)
        deleted = had - has
        total += mean_share(deleted - wanted, deleted)
        added, worth_adding = set(has) - set(had), set(wanted) - set(had)
        right = len(added & worth_adding)
        total += f1(ratio(right, len(added)), ratio(right, len(worth_adding)))
    return total / (3 * orders)


def ngrams(tokens: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(tokens[i:] for i in range(n))))


def multiply(counts: Counter, factor: int) -> Counter:
    return Counter({key: factor * count for key, count in counts.items()})


def mean_share(part: Counter, whole: Counter) -> float:
    """The mean over the kinds in ``whole`` of the share of each that is in ``part``; 1 where there is nothing."""
    return ratio(sum(count / whole[key] for key, count in part.items()), len(whole))


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
