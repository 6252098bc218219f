#!/usr/bin/env python3
"""IWSLT14 German-English: the publisher's archive -> raw text for prepare_pairs.py.

    iwslt14_corpus.py de-en.tgz raw

Writes raw/{train,valid,test}.{de,en}, split as the literature does (Ranzato et al., 2016): lower case; pairs of 1 to
175 Moses tokens a side and a ratio of lengths up to 1.5; every 23rd pair is for validation; the test set is dev2010,
dev2012 and tst2010 to tst2012 together.
"""

import re
import sys
import tarfile
from pathlib import Path

from prepare_pairs import PreparationError, moses, within_limits, write_pairs

LANGS = ("de", "en")
TRAIN = "de-en/train.tags.de-en.{lang}"
TEST = [
    "de-en/IWSLT14.TED.dev2010.de-en.{lang}.xml",
    "de-en/IWSLT14.TEDX.dev2012.de-en.{lang}.xml",
    "de-en/IWSLT14.TED.tst2010.de-en.{lang}.xml",
    "de-en/IWSLT14.TED.tst2011.de-en.{lang}.xml",
    "de-en/IWSLT14.TED.tst2012.de-en.{lang}.xml",
]
MAX_TOKENS, MAX_RATIO, VALID_EVERY = 175, 1.5, 23


def read_members(archive):
    """{name: text} of the files that are needed.

    Raises:
        PreparationError: a damaged archive, or one without them.
    """
    names = {name.format(lang=lang) for name in [TRAIN, *TEST] for lang in LANGS}
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name[2:] if member.name.startswith("./") else member.name
                if name in names and member.isfile():
                    found[name] = tar.extractfile(member).read().decode("utf-8")
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        raise PreparationError(f"{archive} is damaged: {error}") from None
    for name in sorted(names - set(found)):
        raise PreparationError(f"{archive} lacks {name}")
    return found


def talk_lines(text):
    """Spoken lines, titles and descriptions of a train.tags file, without what describes the talk."""
    described = re.compile(r"<(url|talkid|keywords)>")
    return [re.sub(r"</?(title|description)>", "", line) for line in lines_of(text) if not described.search(line)]


def segments(text):
    """The segments of an XML test file, with plain apostrophes."""
    found = (re.search(r"<seg id=[^>]*>(.*)</seg>", line) for line in lines_of(text))
    return [match.group(1).replace("\u2019", "'") for match in found if match]


def lines_of(text):
    """Lines as other tools count them: ended by line feeds alone."""
    return text.rstrip("\n").split("\n")


def pair_up(sides, what):
    """Lower-case pairs with single spaces."""
    if len(sides[0]) != len(sides[1]):
        raise PreparationError(f"{what}: {len(sides[0])} lines of {LANGS[0]} but {len(sides[1])} of {LANGS[1]}")
    return [tuple(" ".join(text.lower().split()) for text in pair) for pair in zip(*sides)]


def usable(pairs):
    """The pairs within the limits, counted in Moses tokens."""
    tokenizers = [moses(lang) for lang in LANGS]
    lengths_fit = lambda pair: within_limits(*(tok(text) for tok, text in zip(tokenizers, pair)), MAX_TOKENS, MAX_RATIO)
    return [pair for pair in pairs if lengths_fit(pair)]


def build(archive, folder):
    """Write the splits; returns how many pairs each has."""
    members = read_members(archive)
    sides = lambda name, read: [read(members[name.format(lang=lang)]) for lang in LANGS]
    talks = usable(pair_up(sides(TRAIN, talk_lines), "train"))
    splits = {
        "train": [pair for number, pair in enumerate(talks, 1) if number % VALID_EVERY],
        "valid": talks[VALID_EVERY - 1 :: VALID_EVERY],
        "test": [pair for name in TEST for pair in pair_up(sides(name, segments), name)],
    }
    for name, pairs in splits.items():
        write_pairs(Path(folder) / name, LANGS, pairs)
    return {name: len(pairs) for name, pairs in splits.items()}


def main(arguments):
    if len(arguments) != 2:
        sys.exit(__doc__)
    try:
        print("extracted: " + ", ".join(f"{name} {number}" for name, number in build(*arguments).items()))
    except (PreparationError, OSError) as error:
        sys.exit(f"iwslt14_corpus: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
