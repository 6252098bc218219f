"""The tools in scripts/ that prepare the corpora of examples/."""

import gzip
import hashlib
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"


def load(name):
    """Import a script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pairs_tool, debian = load("prepare_pairs"), load("debian_corpus")


def run(script, *arguments, **environment):
    """Run a script as a user would."""
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **environment},
    )


def assert_one_line_error(result, *parts):
    """Non-zero exit, and stderr ends with one line that holds all parts; no traceback."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert str(part) in result.stderr.strip().split("\n")[-1]


# -------------------------------------------------------------------------- cleaning


def splits(train, valid=(("v", "V"),), test=(("t", "T"),)):
    return {"train": list(train), "valid": list(valid), "test": list(test)}


def test_cleaning_drops_empty_pairs_and_duplicates():
    train = [("Ein Hund", "A dog"), ("", "x"), ("@@", "@@"), ("ein  hund", "a DOG"), ("y", " ")]
    cleaned, counts = pairs_tool.clean(splits(train))
    assert cleaned["train"] == [("Ein Hund", "A dog")]
    assert counts["train"] == {"read": 5, "not_empty": 2, "unique": 1, "no_overlap": 1}


def test_cleaning_removes_overlap_on_either_side():
    train = [("T ", "other"), ("other", "t"), ("V", "new"), ("new", "V"), ("kept", "kept")]
    valid = [("t", "something"), ("v", "v")]
    cleaned, counts = pairs_tool.clean(splits(train, valid))
    assert cleaned["train"] == [("kept", "kept")]
    assert cleaned["valid"] == [("v", "v")]
    assert cleaned["test"] == [("t", "T")]
    assert counts["valid"] == {"read": 2, "not_empty": 2, "unique": 2, "no_overlap": 1}


def test_official_evaluation_sets_stay_complete():
    held_out = [("", "empty"), ("a", "b"), ("A", "B")]
    cleaned, counts = pairs_tool.clean(splits([("a", "x"), ("c", "d")], held_out, held_out), keep_eval=True)
    assert cleaned["valid"] == cleaned["test"] == held_out
    assert cleaned["train"] == [("c", "d")]
    assert counts["test"] == {"read": 3}


def test_published_training_sets_lose_only_empty_pairs():
    held_out = [("", "empty"), ("a", "b")]
    cleaned, counts = pairs_tool.clean(
        splits([("a", "x"), ("a", "x"), ("", "y")], held_out, held_out), as_published=True
    )
    assert cleaned == splits([("a", "x"), ("a", "x")], held_out, held_out)
    assert counts["train"] == {"read": 3, "not_empty": 2} and counts["test"] == {"read": 2}


def test_shared_openings_are_removed_on_request():
    train = [("one two three four", "a"), ("one two other", "b"), ("one", "c")]
    test = [("One two three five", "d")]
    cleaned, counts = pairs_tool.clean(splits(train, test=test), distinct_opening=3)
    assert [target for _, target in cleaned["train"]] == ["b", "c"]
    assert counts["train"]["distinct_opening"] == 2


def test_limits():
    assert pairs_tool.within_limits("a b c", "a", 3, 3)
    assert not pairs_tool.within_limits("a b c", "a", 3, 2.9)
    assert not pairs_tool.within_limits("a b c d", "a b", 3, 0)
    assert not pairs_tool.within_limits("", "", 3, 0)
    assert pairs_tool.within_limits("a " * 50, "a", 50, 0)


def test_an_empty_split_is_an_error():
    with pytest.raises(pairs_tool.PreparationError, match="no pairs are left in train"):
        pairs_tool.clean(splits([("T", "x")]))


def test_reading(tmp_path):
    (tmp_path / "a.de").write_bytes("eins\u2028 zwei\r\n\tdrei \n".encode("utf-8"))
    with gzip.open(tmp_path / "a.en.gz", "wb") as stream:
        stream.write(b"one two\nthree\n")
    expected = [("eins zwei", "one two"), ("drei", "three")]
    assert pairs_tool.read_pairs(tmp_path / "a", "de", "en") == expected
    (tmp_path / "a.en").write_text("one\n")
    with pytest.raises(pairs_tool.PreparationError, match="2 lines of de but 1 of en"):
        pairs_tool.read_pairs(tmp_path / "a", "de", "en")
    (tmp_path / "b.en.gz").write_bytes((tmp_path / "a.en.gz").read_bytes()[:-6])
    with pytest.raises(pairs_tool.PreparationError, match="damaged"):
        pairs_tool.read_lines(tmp_path / "b", "en")
    whole = gzip.compress(" ".join(map(str, range(300))).encode())
    for place in range(10, len(whole), 7):  # behind the header: bad streams, bad checksums
        (tmp_path / "b.en.gz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(pairs_tool.PreparationError, match="damaged"):
            pairs_tool.read_lines(tmp_path / "b", "en")


def test_progress_shows_reports_and_why_a_training_ended():
    shown = load("show_progress").report
    assert shown("2026 | INFO | train_inner | epoch 001: loss=3.5, wps=900, num_updates=50, lr=1") == (
        "training   num_updates 50  loss 3.5  wps 900"
    )
    for line in (
        "torch.OutOfMemoryError: CUDA out of memory.",
        "fairseq-train: error: unrecognized arguments: --x",
        "KeyError: 1",
    ):
        assert shown(line + "\n") == line
    assert shown("2026 | INFO | fairseq.trainer | begin training epoch 1") is None


def test_tokeniser_is_the_one_of_fairseq():
    encoders = pytest.importorskip("fairseq.data.encoders.moses_tokenizer")
    ours = pairs_tool.moses("en")
    theirs = encoders.MosesTokenizer(encoders.MosesTokenizerConfig())
    text = "A man's well-known \"real\" band isn't here (yet)."
    assert ours(text) == theirs.encode(text)
    assert theirs.decode(ours(text)) == text


# -------------------------------------------------------------------- whole pipeline

WORDS = {
    "ein": "a", "Hund": "dog", "Mann": "man", "Kind": "child", "läuft": "runs", "schläft": "sleeps",
    "singt": "sings", "hier": "here", "draußen": "outside", "heute": "today", "gern": "gladly",
}  # fmt: skip


def corpus(folder):
    """Write 60 sentence pairs: 44 train, 8 valid, 8 test; one test pair is in train too."""
    nouns, verbs = ["Hund", "Mann", "Kind"], ["läuft", "schläft", "singt"]
    ends = ["hier", "draußen", "heute", "gern", "hier gern", "heute draußen", "heute hier"]
    german = [f"ein {n} {v} {e}" for n in nouns for v in verbs for e in ends][:59]
    lines = [(g + " .", " ".join(WORDS[w] for w in g.split()) + " .") for g in german]
    lines = [(f"{g[0].upper()}{g[1:]}", f"{e[0].upper()}{e[1:]}") for g, e in lines]
    parts = {"train": lines[16:] + lines[:1], "valid": lines[8:16], "test": lines[:8]}
    folder.mkdir()
    for name, part in parts.items():
        for side, lang in enumerate(("de", "en")):
            text = "".join(pair[side] + "\n" for pair in part)
            (folder / f"{name}.{lang}").write_text(text, encoding="utf-8")
    return folder


def command(raw, destination, *extra):
    """Arguments of prepare_pairs.py for `corpus`."""
    prefixes = [f"--{name}pref={raw / name}" for name in pairs_tool.SPLITS]
    return [destination, "--source-lang=de", "--target-lang=en", *prefixes, "--merges=30", *extra]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    pytest.importorskip("sacremoses")
    pytest.importorskip("subword_nmt")
    folder = tmp_path_factory.mktemp("pipeline")
    raw = corpus(folder / "raw")
    result = run("prepare_pairs.py", *command(raw, folder / "out"))
    assert result.returncode == 0, result.stderr
    return raw, folder / "out", result


def test_pipeline_writes_what_training_needs(prepared):
    from fairseq.data import Dictionary, data_utils

    raw, out, result = prepared
    assert "train read 44" in result.stdout
    assert "it/s" not in result.stderr  # no progress bar
    assert pairs_tool.finished(out, ("de", "en"))
    assert [path.name for path in out.parent.iterdir() if "unfinished" in path.name] == []
    stats = json.loads((out / "stats.json").read_text(encoding="utf-8"))
    assert stats["pairs"]["train"] == {
        "read": 44, "not_empty": 44, "unique": 44, "no_overlap": 43, "length": 43,
    }  # fmt: skip
    assert stats["pairs"]["test"]["no_overlap"] == 8
    assert (out / "dict.de.txt").read_bytes() == (out / "dict.en.txt").read_bytes()
    dictionary = Dictionary.load(str(out / "dict.en.txt"))
    data = data_utils.load_indexed_dataset(str(out / "test.de-en.en"), dictionary)
    text = [dictionary.string(line, "@@ ") for line in data]
    assert text == (out / "raw" / "test.en").read_text(encoding="utf-8").splitlines()
    assert text == (raw / "test.en").read_text(encoding="utf-8").splitlines()


def test_second_run_reuses_a_finished_folder(prepared):
    raw, out, _ = prepared
    before = (out / "codes").stat().st_mtime_ns
    result = run("prepare_pairs.py", *command(raw, out))
    assert result.returncode == 0 and "finished already" in result.stdout
    assert (out / "codes").stat().st_mtime_ns == before


def test_several_processes_make_the_same_folder(prepared, tmp_path):
    raw, out, _ = prepared
    result = run("prepare_pairs.py", *command(raw, tmp_path / "out", "--workers=2"))
    assert result.returncode == 0, result.stderr
    for name in ("train.de-en.de.bin", "codes", "dict.de.txt", "raw/test.en"):
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes()


def test_other_settings_or_other_text_are_not_reused(prepared, tmp_path):
    raw, out, _ = prepared
    other = run("prepare_pairs.py", *command(raw, out, "--merges=31"))
    assert_one_line_error(other, "merges = 30, not 31")
    changed = corpus(tmp_path / "raw")
    (changed / "valid.de").write_text("Neu hier .\n" * 8, encoding="utf-8")
    assert_one_line_error(run("prepare_pairs.py", *command(changed, out)), "input_sha256")


def test_codes_and_dictionaries_of_another_folder(prepared, tmp_path):
    """For fine-tuning: other text, the same pieces and numbers of words; a missing folder is named."""
    _, out, _ = prepared
    raw = corpus(tmp_path / "raw")
    for lang in ("de", "en"):
        lines = (raw / f"train.{lang}").read_text(encoding="utf-8").splitlines(keepends=True)
        (raw / f"train.{lang}").write_text("".join(lines[:20]), encoding="utf-8")
    made = tmp_path / "out"
    result = run("prepare_pairs.py", *command(raw, made, f"--like={out}"))
    assert result.returncode == 0, result.stderr
    for name in ("codes", "dict.de.txt", "dict.en.txt", "test.de-en.de.bin"):
        assert (made / name).read_bytes() == (out / name).read_bytes()
    assert_one_line_error(run("prepare_pairs.py", *command(raw, made)), "was made with like")
    nowhere = run("prepare_pairs.py", *command(raw, tmp_path / "new", f"--like={tmp_path / 'nowhere'}"))
    assert_one_line_error(nowhere, "nowhere")


def test_half_made_folder_is_not_trusted(prepared, tmp_path):
    raw, out, _ = prepared
    half = tmp_path / "out"
    half.mkdir()
    (half / "stats.json").write_bytes((out / "stats.json").read_bytes())
    assert_one_line_error(run("prepare_pairs.py", *command(raw, half)), half, "not a finished")


def test_a_failed_run_leaves_no_folder(prepared, tmp_path):
    raw, _, _ = prepared
    result = run("prepare_pairs.py", *command(raw, tmp_path / "out", "--max-tokens=1"))
    assert_one_line_error(result, "no pairs are left in train")
    assert list(tmp_path.iterdir()) == []


def test_missing_text_is_a_one_line_error(tmp_path):
    result = run("prepare_pairs.py", *command(tmp_path / "nowhere", tmp_path / "out"))
    assert_one_line_error(result, "no file", "nowhere")
    script = ROOT / "examples" / "translation" / "multi30k" / "prepare.sh"
    environment = {**os.environ, "MULTI30K": str(tmp_path / "nowhere"), "PYTHON": sys.executable}
    result = subprocess.run(
        ["bash", str(script), str(tmp_path / "out")],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        cwd=tmp_path,
    )
    assert_one_line_error(result, "names no folder", "nowhere")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- Debian

ENGLISH = """\
Package: hello
Description-md5: 0001
Description-en: example package: a "hello" program
 The program prints a friendly
 greeting in cross-
 platform style.
 .
 Features:
  * plain greetings, also
    over two lines
  * others
 .
   $ hello --help
 .
 The end.

Package: zwei
Description-md5: 0002
Description-en: second package
 One paragraph.
 .
 And another.

Package: drei
Description-md5: 0003
Description-en: Gimp
 Not translated.
"""
GERMAN = """\
Package: hello
Description-md5: 0001
Description-de: Beispielpaket: ein »hello«-Programm
 Das Programm gibt einen freundlichen Gruß aus, für Ein-
 und Mehrplatzrechner.
 .
 Merkmale:
  * einfache Grüße
  - andere
 .
   $ hello --help
 .
 Das Ende.

Package: zwei
Description-md5: 0002
Description-de: zweites Paket
 Nur ein Absatz.

Package: drei
Description-md5: 0003
Description-de: GIMP

Package: vier
Description-md5: 0004
Description-de: nur deutsch
 Ohne Gegenstück.
"""


@pytest.fixture
def state(tmp_path):
    """A state folder as `fetch` leaves it."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "Translation-en").write_text(ENGLISH, encoding="utf-8")
    (folder / "Translation-de").write_text(GERMAN, encoding="utf-8")
    (folder / "source.json").write_text('{"release": "test"}')
    return folder


def test_parser(state):
    package, md5, synopsis, lines = next(debian.read_descriptions(state, "en"))
    assert (package, md5) == ("hello", "0001")
    assert synopsis == 'example package: a "hello" program'
    assert lines[:2] == ["The program prints a friendly", "greeting in cross-"]
    assert len(list(debian.read_descriptions(state, "de"))) == 4


def test_damaged_stanzas_are_reported():
    with pytest.raises(debian.CorpusError, match="without a field"):
        list(debian.parse_stanzas([" text"]))
    with pytest.raises(debian.CorpusError, match="field name"):
        list(debian.parse_stanzas(["Package: a", "garbage"]))


def test_blocks():
    assert debian.blocks(["text over", "two lines"]) == ["text over two lines"]
    assert debian.blocks(["List:", " * one", "   more", "  - two", "after"]) == [
        "List:", "one more", "two", "after",
    ]  # fmt: skip
    assert debian.blocks([" 1. one", " (2) two", " o three", " *four"]) == [
        "one", "two", "three", "four",
    ]  # fmt: skip
    assert debian.blocks(["Code:", "  x = 1"]) == []
    assert debian.blocks(["-5 degrees", "*.txt"]) == ["-5 degrees *.txt"]


def test_alignment(state):
    found = {(source, target) for _, source, target in debian.translation_pairs(state)}
    assert found == {
        ("Beispielpaket: ein »hello«-Programm", 'example package: a "hello" program'),
        (
            "Das Programm gibt einen freundlichen Gruß aus, für Ein- und Mehrplatzrechner.",
            "The program prints a friendly greeting in cross-platform style.",
        ),
        ("Merkmale:", "Features:"),
        ("einfache Grüße", "plain greetings, also over two lines"),
        ("andere", "others"),
        ("Das Ende.", "The end."),
        ("zweites Paket", "second package"),
    }


def test_synopses(state):
    triples = list(debian.synopsis_pairs(state, 8))
    assert triples[0][1:] == (
        "The program prints a friendly greeting in cross-platform",
        'example package: a "hello" program',
    )
    text = list(debian.synopsis_pairs(state, 0))[0][1]
    assert text.endswith("others $ hello --help The end.")


def test_splits_are_stable():
    known = {
        "train": ["hello", "bash", "zsh"],
        "valid": ["akonadi-server", "libace-dev"],
        "test": ["a7xpg", "acm"],
    }
    for name, packages in known.items():
        assert {debian.split_of(package) for package in packages} == {name}
    share = [debian.split_of(f"package{number}") for number in range(5000)]
    assert 50 < share.count("test") < 150 and 50 < share.count("valid") < 150


def test_extraction_command(state, tmp_path):
    out = tmp_path / "out"
    result = run("debian_corpus.py", "synopses", state, out, "--max-words=3")
    assert result.returncode == 0, result.stderr
    assert (out / "train.desc").read_text().splitlines()[0] == "The program prints"
    about = json.loads((out / "about.json").read_text())
    assert about["release"] == "test" and about["max_words"] == 3
    assert sum(about["extracted"].values()) == 3
    (state / "Translation-de").unlink()
    result = run("debian_corpus.py", "translation", state, out)
    assert_one_line_error(result, "Translation-de is missing")
    assert_one_line_error(run("debian_corpus.py", "fetch", state), "no finished state folder")


def fake_apt(folder, languages):
    """An apt-get that "downloads" ENGLISH and GERMAN into the lists of its configuration."""
    folder.mkdir()
    text = {"en": ENGLISH, "de": GERMAN}
    for language in languages:
        (folder / language).write_text(text[language], encoding="utf-8")
    (folder / "apt-get").write_text(
        "#!/bin/sh\n"
        'here=$(dirname "$0")\n'
        'lists=$(sed -n \'s/^Dir::State::lists "\\(.*\\)";/\\1/p\' "$2")\n'
        f"for language in {' '.join(languages)}; do\n"
        '  case "$3" in\n'
        '  update) cp "$here/$language" "$lists/$language" ;;\n'
        '  indextargets) printf "Filename: %s\\nLanguage: %s\\nComponent: main\\n'
        'Site: here\\nRelease: stable\\nOrigin: Test\\n\\n" "$lists/$language" "$language" ;;\n'
        "  esac\n"
        "done\n"
    )
    (folder / "apt-get").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_fetch(tmp_path):
    path, target = fake_apt(tmp_path / "bin", ["de", "en"]), tmp_path / "text"
    result = run("debian_corpus.py", "fetch", target, PATH=path)
    assert result.returncode == 0, result.stderr
    assert (target / "Translation-de").read_text(encoding="utf-8") == GERMAN
    digest = hashlib.sha256(ENGLISH.encode("utf-8")).hexdigest()
    assert debian.load_source(target)["sha256"]["Translation-en"] == digest
    again = run("debian_corpus.py", "fetch", target, PATH=str(tmp_path))
    assert again.returncode == 0 and "reused" in again.stdout


def test_fetch_without_apt_or_german_leaves_nothing(tmp_path):
    path, target = fake_apt(tmp_path / "bin", ["en"]), tmp_path / "text"
    assert_one_line_error(run("debian_corpus.py", "fetch", target, PATH=path), "Translation-de")
    (tmp_path / "none").mkdir()
    result = run("debian_corpus.py", "fetch", target, PATH=str(tmp_path / "none"))
    assert_one_line_error(result, "apt-get is missing")
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "none"}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--target-lang=de"], "--source-lang and --target-lang are both de"),
        (["--source-lang=de-AT"], "not de-AT"),
        (["--like=elsewhere"], "--like elsewhere has no codes"),
        (["--workers=0"], "--workers must be at least 1, not 0"),
    ],
)
def test_options_that_cannot_work_are_one_line(options, message, prepared, tmp_path):
    raw, _, _ = prepared
    assert_one_line_error(run("prepare_pairs.py", *command(raw, tmp_path / "none", *options)), message)


def test_a_text_with_line_feeds_stays_one_line(tmp_path):
    pairs_tool.write_pairs(tmp_path / "a", ("x", "y"), [("one\ntwo ", "three"), ("four", "five\r\nsix\u2028seven")])
    assert (tmp_path / "a.x").read_text() == "one two\nfour\n"
    assert (tmp_path / "a.y").read_text() == "three\nfive six seven\n"


def test_what_several_processes_would_need_is_missed_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(pairs_tool.PreparationError, match="sacremoses"):
        pairs_tool.map_lines(pairs_tool.moses, "en", ["a"], workers=2)


@pytest.mark.parametrize("kind", ["zip", "gztar", "gz"])
def test_an_archive_is_read_to_its_end(kind, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text").write_text(" ".join(map(str, range(3000))))
    if kind == "gz":
        file = tmp_path / "a.gz"
        file.write_bytes(gzip.compress((tmp_path / "in" / "text").read_bytes()))
    else:
        file = Path(shutil.make_archive(str(tmp_path / "a"), kind, tmp_path / "in"))
    archives, whole = load("archives"), file.read_bytes()
    archives.check(file)
    half = len(whole) // 2
    for damaged in (whole[:half], whole[:half] + bytes([whole[half] ^ 0xFF]) + whole[half + 1 :]):
        file.write_bytes(damaged)
        with pytest.raises(Exception, match="damaged") as raised:
            archives.check(file)
        assert type(raised.value).__name__ == "PreparationError"


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, "de en"),
        ({"SOURCE_LANG": "en"}, "en de"),
        ({"TARGET_LANG": "de"}, "en de"),
        ({"SOURCE_LANG": "fr"}, "fr en"),
        ({"SOURCE_LANG": "en", "TARGET_LANG": "fr"}, "en fr"),
        ({"SOURCE_LANG": "de"}, "de en"),
    ],
)
def test_of_one_language_that_is_given_the_other_follows(given, expected):
    line = f'source "{SCRIPTS}/recipe.sh"; direction de en; echo "$source_lang $target_lang"'
    done = subprocess.run(["bash", "-euc", line], env={**os.environ, **given}, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n"


def test_a_download_goes_on_or_begins_anew(tmp_path):
    """Python's own server knows no ranges."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.txt").write_text("text\n" * 1000)
    serve = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "a.txt.part").write_text("text\n" * 10)
        line = (
            f'source "{SCRIPTS}/recipe.sh"; download X http://127.0.0.1:{server.server_port}/a.txt "{tmp_path}/a.txt"'
        )
        subprocess.run(["bash", "-euc", line], env={**os.environ, "PYTHON": sys.executable}, check=True)
        server.shutdown()
    assert (tmp_path / "a.txt").read_text() == "text\n" * 1000
