#!/usr/bin/env python3
"""Parallel text from Debian's package descriptions.

    debian_corpus.py fetch STATE              Translation-de and Translation-en, through apt
    debian_corpus.py translation STATE OUT    German -> English paragraphs and synopses
    debian_corpus.py synopses STATE OUT       long description -> one-line synopsis, English

`fetch` uses the apt sources of the system (Debian or a derivative) but a state folder of
its own: it needs no root and leaves the state of the system alone. The other two commands
write OUT/{train,valid,test}.LANG and OUT/about.json for prepare_pairs.py. A package belongs
to one split by the SHA-1 of its name, so the splits stay the same when packages come or go.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LANGUAGES = ("de", "en")
SPLITS = ("train", "valid", "test")

APT_CONFIG = """
Dir::State "{state}";
Dir::State::lists "{state}/lists";
Dir::Cache "{state}/cache";
APT::Sandbox::User "root";
Acquire::GzipIndexes "false";
Acquire::IndexTargets::deb::Packages::DefaultEnabled "false";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::Languages;
Acquire::Languages {{ "de"; "en"; }};
"""

# "* item", "- item", "1. item", "(2) item"; "o item" and "*item" only if indented.
BULLET = re.compile(r"\s*(?:[*+•·-]|\(\d{1,2}\)|\d{1,2}[.)])\s+|\s+(?:o\s+|[*•]\s*)")
# After a hyphen at the end of a line, these words are no second half of a compound.
CONJUNCTION = re.compile(r"(?:und|oder|bzw|sowie|and|or|to)\b")


class CorpusError(Exception):
    """A problem that one line explains to the user."""


# ------------------------------------------------------------------------------ apt


def run_apt(*arguments):
    """Run apt-get and return what it printed."""
    if shutil.which("apt-get") is None:
        raise CorpusError("apt-get is missing: this corpus is fetched on Debian or a derivative")
    result = subprocess.run(
        ["apt-get", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "LC_ALL": "C"},
    )
    if result.returncode != 0:
        sys.stderr.write(result.stderr)
        raise CorpusError("apt-get failed, see its messages above")
    return result.stdout


def choose_release(targets):
    """The first release whose component main has all languages: ({language: file}, name)."""
    releases = {}
    for target in targets:
        if target["Component"] == ["main"] and Path(target["Filename"][0]).is_file():
            key = (target["Site"][0], target["Release"][0])
            fields = ("Origin", "Codename", "Version")
            name = " ".join(target[field][0] for field in fields if field in target)
            files, _ = releases.setdefault(key, ({}, name))
            files[target["Language"][0]] = target["Filename"][0]
    for files, name in releases.values():
        if set(LANGUAGES) <= set(files):
            return files, name
    raise CorpusError("no apt source of this system has Translation-de and Translation-en")


def fetch(folder):
    """Download the Translation files into `folder`, which appears only when complete."""
    folder = Path(folder)
    if folder.exists():
        load_source(folder)
        print(f"{folder} is there already and is reused")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.unfinished-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as tmp:
        state, result = Path(tmp).resolve() / "apt", Path(tmp) / "folder"
        (state / "lists" / "partial").mkdir(parents=True)
        result.mkdir()
        config = state / "apt.conf"
        config.write_text(APT_CONFIG.format(state=state), encoding="utf-8")
        run_apt("-c", str(config), "update")
        listing = run_apt("-c", str(config), "indextargets", "Created-By: Translations")
        files, release = choose_release(list(parse_stanzas(listing.split("\n"))))
        source = {"release": release, "sha256": {}}
        for language in LANGUAGES:
            copy = shutil.copyfile(files[language], result / f"Translation-{language}")
            source["sha256"][copy.name] = hashlib.sha256(copy.read_bytes()).hexdigest()
        (result / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        result.rename(folder)
    print(f"fetched {source['release']} into {folder}")


def load_source(folder):
    """What `fetch` recorded about a state folder; refuses one that is not complete."""
    for name in ["source.json", *(f"Translation-{language}" for language in LANGUAGES)]:
        if not (Path(folder) / name).is_file():
            raise CorpusError(f"{folder} is no finished state folder: {name} is missing")
    return json.loads((Path(folder) / "source.json").read_text(encoding="utf-8"))


# -------------------------------------------------------------------------- parsing


def parse_stanzas(lines):
    """Yield the stanzas of a Debian control file as {field: [first line, more lines...]}."""
    stanza, field = {}, None
    for line in lines:
        line = line.rstrip("\r\n")
        if not line.strip():
            if stanza:
                yield stanza
            stanza, field = {}, None
        elif line[0].isspace():
            if field is None:
                raise CorpusError(f"continuation line without a field: {line!r}")
            stanza[field].append(line[1:])
        else:
            field, colon, value = line.partition(":")
            if not colon:
                raise CorpusError(f"line without a field name: {line!r}")
            stanza[field] = [value.strip()]
    if stanza:
        yield stanza


def paragraphs(lines):
    """Split the lines of a long description at its " ." lines."""
    result = [[]]
    for line in lines:
        if line.strip() == ".":
            result.append([])
        else:
            result[-1].append(line.rstrip())
    return [paragraph for paragraph in result if paragraph]


def join_lines(lines):
    """One line of text; a hyphen at a line's end stays, without a space after it."""
    text = ""
    for line in map(str.strip, lines):
        glued = re.search(r"\w-$", text) and not CONJUNCTION.match(line)
        text += line if glued or not text else " " + line
    return " ".join(text.split())


def blocks(lines):
    """Split one paragraph into running text and list items, without the bullets.

    Returns no blocks at all for verbatim text (indented lines that are no list items):
    code, tables and the like.
    """
    result, level = [], None  # level: indentation of the current item, None in running text
    for line in lines:
        bullet, indent = BULLET.match(line), len(line) - len(line.lstrip())
        if bullet:
            result.append([line[bullet.end() :]])
            level = indent
        elif result and (indent == 0 if level is None else indent > level or level == 0):
            result[-1].append(line)
        elif indent == 0:
            result.append([line])
            level = None
        else:
            return []
    return [join_lines(block) for block in result]


def read_descriptions(folder, language):
    """Yield (package, md5, synopsis, lines of the long description)."""
    path = Path(folder) / f"Translation-{language}"
    with open(path, encoding="utf-8", newline="\n") as stream:
        for stanza in parse_stanzas(stream):
            try:
                synopsis, *lines = stanza[f"Description-{language}"]
                yield stanza["Package"][0], stanza["Description-md5"][0], synopsis, lines
            except KeyError as error:
                raise CorpusError(f"{path}: a stanza without {error}") from None


# ------------------------------------------------------------------------ extraction


def split_of(package):
    """The split of a package: 2 % test, 2 % valid, by the SHA-1 of its name."""
    bucket = int(hashlib.sha1(package.encode("utf-8")).hexdigest()[:8], 16) % 100
    return "test" if bucket < 2 else "valid" if bucket < 4 else "train"


def align(source, target):
    """Align two long descriptions: pairs of blocks, where both sides have equally many."""
    source, target = paragraphs(source), paragraphs(target)
    if len(source) != len(target):
        return []
    pairs = []
    for one, other in zip(source, target):
        one, other = blocks(one), blocks(other)
        if len(one) == len(other):
            pairs += zip(one, other)
    return pairs


def translation_pairs(folder):
    """Yield (split, German, English) for synopses and aligned blocks, by Description-md5."""
    german = {md5: (synopsis, lines) for _, md5, synopsis, lines in read_descriptions(folder, "de")}
    for package, md5, synopsis, lines in read_descriptions(folder, "en"):
        if md5 in german:
            german_synopsis, german_lines = german.pop(md5)
            for pair in [(german_synopsis, synopsis), *align(german_lines, lines)]:
                # Equal sides are names, addresses or text that nobody translated.
                if pair[0].lower() != pair[1].lower():
                    yield (split_of(package), *pair)


def long_text(lines, max_words):
    """A long description as one line without bullets, cut after `max_words` words."""
    texts = []
    for paragraph in paragraphs(lines):
        texts += blocks(paragraph) or [join_lines(paragraph)]
    words = " ".join(texts).split()
    return " ".join(words[:max_words] if max_words else words)


def synopsis_pairs(folder, max_words):
    """Yield (split, long description, synopsis)."""
    for package, _, synopsis, lines in read_descriptions(folder, "en"):
        yield split_of(package), long_text(lines, max_words), synopsis


def write_corpus(out, langs, triples, about):
    """Write OUT/SPLIT.LANG and OUT/about.json."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    splits = {name: [] for name in SPLITS}
    for name, *pair in triples:
        splits[name].append(pair)
    for name, pairs in splits.items():
        for side, lang in enumerate(langs):
            with open(out / f"{name}.{lang}", "w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(" ".join(pair[side].split()) + "\n" for pair in pairs)
    about = {**about, "extracted": {name: len(pairs) for name, pairs in splits.items()}}
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print("extracted " + "  ".join(f"{name} {n}" for name, n in about["extracted"].items()))


# ---------------------------------------------------------------------- command line


def get_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("fetch", "translation", "synopses"):
        command = commands.add_parser(name)
        command.add_argument("state", help="folder with the Translation files")
        if name != "fetch":
            command.add_argument("out", help="folder to write the raw text to")
        if name == "synopses":
            command.add_argument("--max-words", type=int, default=100, help="cut long descriptions; 0: never")
    return parser


def main(argv=None):
    """Command-line entry; problems become one line on stderr and exit code 1."""
    args = get_parser().parse_args(argv)
    try:
        if args.command == "fetch":
            fetch(args.state)
        elif args.command == "translation":
            about = load_source(args.state)
            write_corpus(args.out, ("de", "en"), translation_pairs(args.state), about)
        else:
            about = {**load_source(args.state), "max_words": args.max_words}
            triples = synopsis_pairs(args.state, args.max_words)
            write_corpus(args.out, ("desc", "syn"), triples, about)
    except (CorpusError, OSError) as error:
        sys.exit(f"debian_corpus: {error}")


if __name__ == "__main__":
    main()
