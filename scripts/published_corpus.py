#!/usr/bin/env python3
"""Benchmark corpora as their publishers lay them out -> raw text for prepare_pairs.py.

    published_corpus.py gigaword summary.tar.gz raw
    published_corpus.py wmt14 FOLDER raw --source-lang en

Writes raw/{train,valid,test}.LANG for both sides.  What each layout reads is told by its function below.
"""

import argparse
import csv
import html
import json
import re
import sys
from pathlib import Path

from archives import read_members
from debian_corpus import split_of
from prepare_pairs import SPLITS, PreparationError, from_sacremoses, moses, within_limits, write_pairs


def pair_up(sources, targets, what):
    """The pairs of two lists of lines.

    Raises:
        PreparationError: they differ in length.
    """
    if len(sources) != len(targets):
        raise PreparationError(f"{what}: {len(sources)} lines on one side but {len(targets)} on the other")
    return list(zip(sources, targets))


def read_splits(archive, *layouts):
    """The splits of the first layout ({split: (source file, target file)}) of which ``archive`` has all files."""
    found = read_members(archive, *([name for files in layout.values() for name in files] for layout in layouts))
    layout = next(layout for layout in layouts if layout["train"][0] in found)
    return {split: pair_up(found[source], found[target], source) for split, (source, target) in layout.items()}


# ----------------------------------------------------------------------------------------------- summarization

#: Rush et al. (2015): summary.tar.gz, whose training files are gzipped.
RUSH = {
    "train": ("train/train.article.txt", "train/train.title.txt"),
    "valid": ("train/valid.article.filter.txt", "train/valid.title.filter.txt"),
    "test": ("Giga/input.txt", "Giga/task1_ref0.txt"),
}
#: UniLM's copy of the same text: ggw_data.zip.
UNILM = {split: tuple(f"org_data/{name}.{side}.txt" for side in ("src", "tgt")) for split, name in
         (("train", "train"), ("valid", "dev"), ("test", "test"))}  # fmt: skip


def gigaword(archive, args):
    """Tokenised, lower case, digits as #; unknown words, <unk> in train and valid, are UNK as in test."""
    splits = read_splits(archive, RUSH, UNILM)
    known = lambda pairs: [tuple(line.replace("<unk>", "UNK") for line in pair) for pair in pairs]
    return ("article", "title"), {split: known(pairs) for split, pairs in splits.items()}


# ------------------------------------------------------------------------------- paraphrase and simplification


def diffuseq(archive, args):
    """DiffuSeq's train.jsonl, valid.jsonl and test.jsonl, each line an object with ``src`` and ``trg``."""
    found = read_members(archive, [f"{split}.jsonl" for split in SPLITS])
    return ("src", "trg"), {split: json_pairs(found[f"{split}.jsonl"], f"{split}.jsonl") for split in SPLITS}


def json_pairs(lines, name):
    """The (src, trg) pairs of lines of JSON.

    Raises:
        PreparationError: a line that is no such object.
    """
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            pairs.append((row["src"].strip(), row["trg"].strip()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PreparationError(f"{name}, line {number}: no JSON object with texts src and trg") from None
    return pairs


def quora(path, args):
    """Quora's quora_duplicate_questions.tsv: the pairs that are marked as duplicates, split here by their ids."""
    splits = {split: [] for split in SPLITS}
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                if row["is_duplicate"] == "1":
                    splits[split_of(row["id"])].append((row["question1"], row["question2"]))
    except (KeyError, csv.Error, UnicodeDecodeError) as error:
        raise PreparationError(f"{path} is not Quora's table, or is damaged: {error}") from None
    return ("src", "trg"), splits


# ------------------------------------------------------------------------------------------------- translation

#: IWSLT14 De-En: de-en.tgz.
IWSLT14_TRAIN = "de-en/train.tags.de-en.{lang}"
IWSLT14_TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
IWSLT14_MAX_TOKENS, IWSLT14_MAX_RATIO, IWSLT14_VALID_EVERY = 175, 1.5, 23


def iwslt14(archive, args):
    """Split as the literature does (Ranzato et al., 2016): lower case; pairs of 1 to 175 Moses tokens a side and a ratio
    of lengths up to 1.5; every 23rd pair is for validation; the test set is dev2010, dev2012 and tst2010 to tst2012
    together.
    """
    langs = ("de", "en")
    tests = [f"de-en/IWSLT14.{name}.de-en.{{lang}}.xml" for name in IWSLT14_TESTS]
    found = read_members(archive, [name.format(lang=lang) for name in [IWSLT14_TRAIN, *tests] for lang in langs])

    def pairs_of(name, read):
        sides = ([clean(line) for line in read(found[name.format(lang=lang)])] for lang in langs)
        return pair_up(*sides, name)

    clean = lambda line: " ".join(line.lower().split())
    talks = within_moses_limits(pairs_of(IWSLT14_TRAIN, talk_lines), langs)
    test_lines = lambda lines: [line.replace("\u2019", "'") for line in segments(lines)]
    return langs, {
        "train": [pair for number, pair in enumerate(talks, 1) if number % IWSLT14_VALID_EVERY],
        "valid": talks[IWSLT14_VALID_EVERY - 1 :: IWSLT14_VALID_EVERY],
        "test": [pair for name in tests for pair in pairs_of(name, test_lines)],
    }


def talk_lines(lines):
    """Spoken lines, titles and descriptions of a train.tags file, without what describes the talk."""
    described = re.compile(r"<(url|talkid|keywords)>")
    return [re.sub(r"</?(title|description)>", "", line) for line in lines if not described.search(line)]


def within_moses_limits(pairs, langs):
    """The pairs within IWSLT14's limits, counted in Moses tokens."""
    tokenisers = [moses(lang) for lang in langs]
    limits = (IWSLT14_MAX_TOKENS, IWSLT14_MAX_RATIO)
    return [pair for pair in pairs if within_limits(*(tok(text) for tok, text in zip(tokenisers, pair)), *limits)]


def segments(lines):
    """The segments of an SGML or XML test file, with entities as characters."""
    found = (re.search(r"<seg [^>]*>(.*)</seg>", line) for line in lines)
    return [html.unescape(match.group(1)).strip() for match in found if match]


#: WMT14 De-En: archive -> what it holds of the training set.
WMT14_TRAIN = {
    "training-parallel-europarl-v7.tgz": "training/europarl-v7.de-en",
    "training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
    "training-parallel-nc-v9.tgz": "training/news-commentary-v9.de-en",
}
WMT14_TEST = {"valid": ("dev.tgz", "dev/newstest2013"), "test": ("test-full.tgz", "test-full/newstest2014-deen")}


def wmt14(folder, args):
    """The archives of statmt.org in a folder: Europarl, Common Crawl and News Commentary (plain text), newstest2013 and
    newstest2014 (SGML).  As in the literature training text has its punctuation normalised; so has every source,
    but references stay as published.
    """
    langs = ("de", "en")
    clean = {lang: normaliser(lang) for lang in langs}
    sides = {lang: [] for lang in langs}
    for archive, prefix in WMT14_TRAIN.items():
        found = read_members(Path(folder) / archive, [f"{prefix}.{lang}" for lang in langs])
        pair_up(*found.values(), prefix)
        for lang in langs:
            sides[lang] += map(clean[lang], found[f"{prefix}.{lang}"])
    splits = {"train": list(zip(*sides.values()))}
    target_lang = next(lang for lang in langs if lang != args.source_lang)
    for split, (archive, prefix) in WMT14_TEST.items():
        names = [f"{prefix}-src.{args.source_lang}.sgm", f"{prefix}-ref.{target_lang}.sgm"]
        source, target = (segments(lines) for lines in read_members(Path(folder) / archive, names).values())
        pairs = pair_up(list(map(clean[args.source_lang], source)), target, prefix)
        splits[split] = pairs if args.source_lang == langs[0] else [pair[::-1] for pair in pairs]
    return langs, splits


def normaliser(lang):
    """A function that normalises punctuation and drops what is not printable (Moses)."""
    return from_sacremoses("MosesPunctNormalizer")(lang, post_remove_control_chars=True).normalize


#: WMT16 En-Ro as Lee et al. (2018) prepared it: wmt16.tar.gz.
WMT16 = {
    "train": ("en-ro/train/corpus.bpe.en", "en-ro/train/corpus.bpe.ro"),
    "valid": ("en-ro/dev/dev.bpe.en", "en-ro/dev/dev.bpe.ro"),
    "test": ("en-ro/test/test.bpe.en", "en-ro/test/test.bpe.ro"),
}


def wmt16_en_ro(archive, args):
    """Tokenised text with the publisher's BPE undone."""
    whole = lambda line: re.sub(r"@@( |$)", "", line)
    splits = read_splits(archive, WMT16)
    return ("en", "ro"), {split: [tuple(map(whole, pair)) for pair in pairs] for split, pairs in splits.items()}


LAYOUTS = {function.__name__: function for function in (gigaword, diffuseq, quora, iwslt14, wmt14, wmt16_en_ro)}


def main(argv=None):
    """Command-line entry; problems become one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("archive", help="archive, folder or file that the publisher calls so")
    parser.add_argument("raw", help="folder to write to")
    parser.add_argument(
        "--source-lang", default="en", choices=["de", "en"], help="wmt14: which side test sets translate"
    )
    args = parser.parse_args(argv)
    try:
        langs, splits = LAYOUTS[args.layout](args.archive, args)
        for name, pairs in splits.items():
            write_pairs(Path(args.raw) / name, langs, pairs)
    except (PreparationError, OSError) as error:
        sys.exit(f"published_corpus: {error}")
    print("extracted: " + ", ".join(f"{name} {len(splits[name])}" for name in SPLITS))


if __name__ == "__main__":
    main()
