#!/usr/bin/env python3
"""Turn raw parallel text into a folder for fairseq-train.

Cleans the pairs, tokenises them (Moses), learns a joint BPE on the training text and
binarises with one dictionary for both sides. The output folder appears only when
everything in it is finished; a second run with the same settings reuses it.

    prepare_pairs.py data-bin/multi30k_de_en --source-lang de --target-lang en \\
        --trainpref raw/train --validpref raw/val --testpref raw/test_2016_flickr
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

SPLITS = ("train", "valid", "test")


class PreparationError(Exception):
    """A problem that one line explains to the user."""


# --------------------------------------------------------------------------- reading


def read_lines(prefix, lang):
    """Lines of `prefix.lang` or `prefix.lang.gz`, white space collapsed."""
    for path in (Path(f"{prefix}.{lang}"), Path(f"{prefix}.{lang}.gz")):
        if path.is_file():
            opener = gzip.open if path.suffix == ".gz" else open
            try:
                with opener(path, "rt", encoding="utf-8", newline="\n") as stream:
                    return [" ".join(line.split()) for line in stream]
            except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
                raise PreparationError(f"{path} is damaged: {error}") from None
    raise PreparationError(f"no file {prefix}.{lang} or {prefix}.{lang}.gz")


def read_pairs(prefix, source_lang, target_lang):
    """The (source, target) pairs of one split."""
    source, target = read_lines(prefix, source_lang), read_lines(prefix, target_lang)
    if len(source) != len(target):
        raise PreparationError(f"{prefix}: {len(source)} lines of {source_lang} but {len(target)} of {target_lang}")
    return list(zip(source, target))


# -------------------------------------------------------------------------- cleaning


def normalise(text):
    """The form in which texts are compared: lower case, single spaces."""
    return " ".join(text.lower().split())


def has_text(text):
    """Whether a letter or a digit is left in the text."""
    return any(character.isalnum() for character in text)


def drop_duplicates(pairs):
    """Keep the first of several pairs that are equal after `normalise`."""
    first = {}
    for source, target in pairs:
        first.setdefault((normalise(source), normalise(target)), (source, target))
    return list(first.values())


def drop_overlap(pairs, held_out):
    """Drop pairs whose source or target also occurs in the held-out pairs."""
    sources = {normalise(source) for source, _ in held_out}
    targets = {normalise(target) for _, target in held_out}
    return [pair for pair in pairs if normalise(pair[0]) not in sources and normalise(pair[1]) not in targets]


def drop_shared_openings(pairs, held_out, words):
    """Drop pairs whose source begins with the same `words` words as a held-out source."""

    def opening(pair):
        return normalise(pair[0]).split()[:words]

    known = {tuple(opening(pair)) for pair in held_out}
    return [pair for pair in pairs if tuple(opening(pair)) not in known]


def clean(splits, keep_eval=False, distinct_opening=0, as_published=False):
    """Drop empty pairs, duplicates and overlap; returns the splits and the counts by stage.

    Test wins over valid and valid over train. With `keep_eval`, valid and test stay as
    they are (official test sets) and only train is cleaned; with `as_published` train
    loses its empty pairs only, as the literature's training sets do.
    """
    cleaned, counts = {}, {}
    for name in reversed(SPLITS):
        pairs, count = splits[name], {"read": len(splits[name])}
        if name == "train" or not (keep_eval or as_published):
            pairs = [pair for pair in pairs if has_text(pair[0]) and has_text(pair[1])]
            count["not_empty"] = len(pairs)
        if not as_published and (name == "train" or not keep_eval):
            pairs = drop_duplicates(pairs)
            count["unique"] = len(pairs)
            held_out = sum(cleaned.values(), [])
            pairs = drop_overlap(pairs, held_out)
            count["no_overlap"] = len(pairs)
            if distinct_opening:
                pairs = drop_shared_openings(pairs, held_out, distinct_opening)
                count["distinct_opening"] = len(pairs)
        if not pairs:
            raise PreparationError(f"no pairs are left in {name}")
        cleaned[name], counts[name] = pairs, count
    return {name: cleaned[name] for name in SPLITS}, {name: counts[name] for name in SPLITS}


def within_limits(source, target, max_tokens, max_ratio):
    """Whether a pair of segmented lines has a usable length (`max_ratio` 0: any ratio)."""
    lengths = sorted((len(source.split()), len(target.split())))
    if lengths[0] == 0 or lengths[1] > max_tokens:
        return False
    return not max_ratio or lengths[1] <= max_ratio * lengths[0]


# ---------------------------------------------------------------------- segmentation


def from_sacremoses(name):
    """A class of sacremoses."""
    try:
        import sacremoses
    except ImportError:
        raise PreparationError("please install sacremoses: pip install sacremoses") from None
    return getattr(sacremoses, name)


def moses(lang):
    """A tokeniser that does what fairseq's `--tokenizer moses` does by default."""
    tokenizer = from_sacremoses("MosesTokenizer")(lang)
    return lambda line: tokenizer.tokenize(line, aggressive_dash_splits=True, return_str=True, escape=True)


def detokeniser(lang):
    """A function that undoes Moses tokenisation."""
    detokenizer = from_sacremoses("MosesDetokenizer")(lang)
    return lambda line: detokenizer.detokenize(line.split())


def map_lines(make, argument, lines, workers):
    """`make(argument)` of every line, in so many processes."""
    function = make(argument)  # here, too, where an error is one
    if workers == 1:
        return list(map(function, lines))
    with multiprocessing.Pool(workers, _set_function, (make, argument)) as pool:
        return pool.map(_call_function, lines, chunksize=5000)


def _set_function(make, argument):
    global _function
    _function = make(argument)


def _call_function(line):
    return _function(line)


def map_sides(make, arguments, splits, workers):
    """The splits with `make(argument)` of every line, an argument for each side."""
    return {
        name: list(zip(*(map_lines(make, argument, side, workers) for argument, side in zip(arguments, zip(*pairs)))))
        for name, pairs in splits.items()
    }


def learn_bpe(lines, merges, path):
    """Learn BPE merges on tokenised lines and write them to `path`."""
    try:
        from subword_nmt.learn_bpe import learn_bpe as learn
    except ImportError:
        raise PreparationError("please install subword-nmt: pip install subword-nmt") from None
    quiet = contextlib.redirect_stderr(io.StringIO())  # its progress bar
    with open(path, "w", encoding="utf-8") as codes, quiet:
        learn(io.StringIO("".join(line + "\n" for line in lines)), codes, merges)


def segmenter(path):
    """A function that splits tokenised lines with the BPE codes of `path`."""
    from subword_nmt.apply_bpe import BPE

    with open(path, encoding="utf-8") as codes:
        bpe = BPE(codes)
    return lambda line: bpe.process_line(line)


def segment(splits, args, codes):
    """Tokenise all splits, learn BPE on train (or take the codes of ``--like``), apply it everywhere."""
    tokenised = splits
    if not args.tokenised:
        tokenised = map_sides(moses, args.tokenizer_langs, splits, args.workers)
    if args.like:
        shutil.copyfile(Path(args.like) / "codes", codes)
    else:
        learn_bpe((side for pair in tokenised["train"] for side in pair), args.merges, codes)
    return map_sides(segmenter, (codes, codes), tokenised, args.workers)


# --------------------------------------------------------------------------- writing


def write_pairs(prefix, langs, pairs):
    """Write `prefix.lang` for both sides."""
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    for side, lang in enumerate(langs):
        with open(f"{prefix}.{lang}", "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(" ".join(pair[side].split()) + "\n" for pair in pairs)  # a line feed ends a pair


def binarise(text, destination, langs, workers, like=None):
    """Run fairseq-preprocess, with one dictionary for both sides or with those of the folder ``like``."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--source-lang", langs[0], "--target-lang", langs[1]]
    if like:
        command += ["--srcdict", f"{like}/dict.{langs[0]}.txt", "--tgtdict", f"{like}/dict.{langs[1]}.txt"]
    else:
        command.append("--joined-dictionary")
    for name in SPLITS:
        command += [f"--{name}pref", str(text / name)]
    command += ["--destdir", str(destination), "--workers", str(workers)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    if result.returncode != 0:
        sys.stderr.write(result.stdout)
        raise PreparationError("fairseq-preprocess failed, see its messages above")


def mean_lengths(splits, langs):
    """Mean number of white-space separated tokens by split and side."""
    return {
        name: {
            lang: round(sum(len(pair[side].split()) for pair in pairs) / len(pairs), 2)
            for side, lang in enumerate(langs)
        }
        for name, pairs in splits.items()
    }


def finished(destination, langs):
    """Whether the folder holds everything that a complete run writes."""
    names = ["stats.json", "codes", *(f"dict.{lang}.txt" for lang in langs)]
    for split in SPLITS:
        for lang in langs:
            names.append(f"{split}.{langs[0]}-{langs[1]}.{lang}.bin")
            names.append(f"{split}.{langs[0]}-{langs[1]}.{lang}.idx")
            if split != "train":
                names.append(f"raw/{split}.{lang}")
    return all((Path(destination) / name).is_file() for name in names)


# -------------------------------------------------------------------------- pipeline


def build(folder, splits, args):
    """Fill `folder` and return its statistics."""
    langs = (args.source_lang, args.target_lang)
    splits, counts = clean(splits, args.keep_eval, args.distinct_opening, args.as_published)
    segmented = segment(splits, args, folder / "codes")
    keep = [within_limits(*pair, args.max_tokens, args.max_ratio) for pair in segmented["train"]]
    for table in (splits, segmented):
        table["train"] = [pair for pair, kept in zip(table["train"], keep) if kept]
    counts["train"]["length"] = len(splits["train"])
    if not splits["train"]:
        raise PreparationError("no pairs are left in train: see --max-tokens and --max-ratio")
    raw = {name: splits[name] for name in SPLITS[1:]}
    if args.tokenised:
        raw = map_sides(detokeniser, args.tokenizer_langs, raw, args.workers)
    for name, pairs in raw.items():
        write_pairs(folder / "raw" / name, langs, pairs)
    with tempfile.TemporaryDirectory() as text:
        for name in SPLITS:
            write_pairs(Path(text) / name, langs, segmented[name])
        binarise(Path(text), folder, langs, args.workers, args.like)
    with open(folder / f"dict.{langs[0]}.txt", encoding="utf-8") as stream:
        vocabulary = sum(not line.startswith("madeupword") for line in stream)
    return {
        "pairs": counts,
        "vocabulary": vocabulary,
        "mean_words": mean_lengths(splits, langs),
        "mean_tokens": mean_lengths(segmented, langs),
    }


def settings_of(args, splits):
    """The settings, and a digest of the input, that decide what the output folder holds."""
    names = ("source_lang", "target_lang", "tokenizer_langs", "merges")
    names += ("max_tokens", "max_ratio", "distinct_opening", "keep_eval", "as_published", "tokenised", "like")
    settings = {name: getattr(args, name) for name in names}
    digest = hashlib.sha256()
    for piece in json.JSONEncoder().iterencode([splits[name] for name in SPLITS]):
        digest.update(piece.encode("utf-8"))
    settings["input_sha256"] = digest.hexdigest()
    return settings


def check_finished(destination, langs, settings):
    """True: a finished folder with these settings is there; False: build it."""
    if not destination.exists():
        return False
    if not finished(destination, langs):
        raise PreparationError(f"{destination} is not a finished preparation: please remove it")
    known = json.loads((destination / "stats.json").read_text(encoding="utf-8"))["settings"]
    known = {"as_published": False, "tokenised": False, "like": None, **known}  # folders made before there was a choice
    for name, value in settings.items():
        if known.get(name) != value:
            raise PreparationError(
                f"{destination} was made with {name} = {known.get(name)}, not {value}: "
                "please remove it or name another folder"
            )
    return True


def prepare(args):
    """Build the output folder, or reuse a finished one; returns its statistics."""
    destination, langs = Path(args.destination), (args.source_lang, args.target_lang)
    prefixes = {name: getattr(args, f"{name}pref") for name in SPLITS}
    splits = {name: read_pairs(prefix, *langs) for name, prefix in prefixes.items()}
    settings = settings_of(args, splits)
    if check_finished(destination, langs, settings):
        print(f"{destination} is finished already and is reused as it is")
        stats = json.loads((destination / "stats.json").read_text(encoding="utf-8"))
        if args.recipe and stats.get("recipe") != args.recipe:
            write_stats(destination, {**stats, "recipe": args.recipe})
        return stats
    stats = {"recipe": args.recipe, "settings": settings}
    if args.about:
        stats["about"] = json.loads(Path(args.about).read_text(encoding="utf-8"))
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.unfinished-", dir=destination.parent) as workplace:
        folder = Path(workplace) / "folder"
        folder.mkdir()
        stats.update(build(folder, splits, args))
        write_stats(folder, stats)
        folder.rename(destination)
    return stats


def write_stats(folder, stats):
    """Write `stats.json`."""
    text = json.dumps(stats, indent=2, ensure_ascii=False) + "\n"
    (folder / "stats.json").write_text(text, encoding="utf-8")


def report(stats):
    """Print how many pairs each stage kept."""
    for name, counts in stats["pairs"].items():
        print(f"{name:5} " + "  ".join(f"{stage} {number}" for stage, number in counts.items()))
    print(f"vocabulary {stats['vocabulary']} types")
    for name, lengths in stats["mean_tokens"].items():
        print(f"{name:5} mean BPE tokens: {lengths}")


def get_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", help="output folder")
    parser.add_argument("--source-lang", required=True, metavar="LANG")
    parser.add_argument("--target-lang", required=True, metavar="LANG")
    for name in SPLITS:
        parser.add_argument(f"--{name}pref", required=True, metavar="PREFIX", help="PREFIX.LANG or PREFIX.LANG.gz")
    parser.add_argument(
        "--tokenizer-langs",
        nargs=2,
        metavar="LANG",
        help="Moses languages of both sides (default: --source-lang and --target-lang)",
    )
    parser.add_argument(
        "--tokenised",
        action="store_true",
        help="the text is tokenised already and stays so; raw/ in the output folder has it detokenised",
    )
    parser.add_argument("--merges", type=int, default=8000, help="number of BPE merges")
    parser.add_argument(
        "--like",
        metavar="FOLDER",
        help="take BPE codes and dictionaries from this folder, made by this script or by fastdiss-export, to go on "
        "training its model (--finetune-from-model)",
    )
    parser.add_argument("--max-tokens", type=int, default=175, help="longest side of a train pair")
    parser.add_argument("--max-ratio", type=float, default=0.0, help="largest ratio of lengths in train; 0: any")
    parser.add_argument(
        "--distinct-opening",
        type=int,
        default=0,
        metavar="N",
        help="drop train pairs whose source begins like one of valid or test, and valid pairs "
        "whose source begins like one of test, in N words (near-duplicates); 0: keep them",
    )
    parser.add_argument("--keep-eval", action="store_true", help="leave valid and test complete, clean only train")
    parser.add_argument(
        "--as-published",
        action="store_true",
        help="leave valid and test complete, and drop nothing from train but empty and over-long pairs: "
        "not even those that valid or test have too",
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="the recipe's folder under examples/, for train.sh and evaluate.sh"
    )
    parser.add_argument("--about", metavar="FILE", help="JSON file to include in stats.json")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenise, apply BPE and binarise")
    return parser


def check(args):
    """Raise PreparationError where the options cannot work."""
    langs = (args.source_lang, args.target_lang)
    if args.workers < 1:
        raise PreparationError(f"--workers must be at least 1, not {args.workers}")
    if langs[0] == langs[1]:
        raise PreparationError(f"--source-lang and --target-lang are both {langs[0]}: name the sides apart")
    for lang in langs:
        if not re.fullmatch(r"\w+", lang):
            raise PreparationError(
                f"a language's name may have letters, digits and _ alone, not {lang}: it is part of file names"
            )
    for name in ("codes", *(f"dict.{lang}.txt" for lang in langs)) if args.like else ():
        if not (Path(args.like) / name).is_file():
            raise PreparationError(f"--like {args.like} has no {name}")


def main(argv=None):
    """Command-line entry; problems become one line on stderr and exit code 1."""
    args = get_parser().parse_args(argv)
    args.tokenizer_langs = args.tokenizer_langs or [args.source_lang, args.target_lang]
    try:
        check(args)
        report(prepare(args))
    except (PreparationError, OSError) as error:
        sys.exit(f"prepare_pairs: {error}")
    print(f"ready: {args.destination}")


if __name__ == "__main__":
    main()
