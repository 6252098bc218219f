"""Recipes whose data is not at hand in every place, on small files of the publishers' layout."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [*sorted((ROOT / "examples").rglob("*.sh")), ROOT / "scripts" / "quickstart.sh"]
TESTS = ["TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"]


def tags(lang, pairs=70):
    head = [f"<url>http://x/{lang}</url>", "<keywords>a, b</keywords>", "<talkid>1</talkid>",
            f"<title>Titel {lang}</title>", f"<description>Von {lang}</description>"]  # fmt: skip
    words = {"de": "Das ist Satz Nummer", "en": "This is sentence number"}[lang]
    lines = [f"{words} {i} ." for i in range(pairs)] + ["", words + " lang" * (9 if lang == "de" else 1)]
    return "\n".join([*head, *lines]) + "\n"


def xml(name, lang):
    segs = "\n".join(f'<seg id="{i}"> It\u2019s {name} {lang} {i} </seg>' for i in (1, 2))
    return f'<?xml version="1.0"?>\n<doc docid="1">\n<title>no segment</title>\n{segs}\n</doc>\n'


def members():
    files = {f"de-en/train.tags.de-en.{lang}": tags(lang) for lang in ("de", "en")}
    for name in TESTS:
        for lang in ("de", "en"):
            files[f"de-en/IWSLT14.{name}.de-en.{lang}.xml"] = xml(name, lang)
    return files


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            data = text.encode("utf-8")
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def prepare(recipe, destination, *options, root=ROOT, **environment):
    return subprocess.run(
        ["bash", str(root / "examples" / recipe / "prepare.sh"), str(destination), *options],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHON": sys.executable, **{name: str(value) for name, value in environment.items()}},
    )


def checkout(folder, recipe):
    """A checkout with one recipe and no data."""
    folder.mkdir()
    (folder / "scripts").symlink_to(ROOT / "scripts")
    script = folder / "examples" / recipe / "prepare.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes((ROOT / "examples" / recipe / "prepare.sh").read_bytes())
    return folder


IWSLT14, BIBLE = "translation/iwslt14", "simplification/bible"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("iwslt14") / "de-en.tgz", members())


@pytest.mark.parametrize("source, target", [("de", "en"), ("en", "de")])
def test_the_archive_becomes_a_data_folder(archive, tmp_path, source, target):
    out = tmp_path / "out"
    done = prepare(IWSLT14, out, "--merges", "50", IWSLT14=archive, SOURCE_LANG=source, TARGET_LANG=target)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "extracted: train 69, valid 3, test 10" in done.stdout  # of 70 lines, a title and a description
    raw = {
        (split, lang): (out / "raw" / f"{split}.{lang}").read_text().splitlines()
        for split in ("valid", "test")
        for lang in ("de", "en")
    }
    assert raw["valid", "en"] == [f"this is sentence number {i} ." for i in (20, 43, 66)]
    assert raw["valid", "de"] == [f"das ist satz nummer {i} ." for i in (20, 43, 66)]
    assert raw["test", "en"] == [f"it's {name.lower()} en {i}" for name in TESTS for i in (1, 2)]
    stats = json.loads((out / "stats.json").read_text())
    assert stats["settings"]["source_lang"] == source and stats["pairs"]["train"]["length"] == 69
    assert (out / f"train.{source}-{target}.{source}.bin").is_file()


def broken(kind, tmp_path):
    files = members()
    if kind == "lacks":
        del files["de-en/IWSLT14.TED.tst2011.de-en.en.xml"]
    if kind == "lines on one side":
        files["de-en/train.tags.de-en.en"] += "one more\n"
    archive = write_archive(tmp_path / "de-en.tgz", files)
    if kind == "damaged":
        archive.write_bytes(archive.read_bytes()[:-200])
    if kind == "IWSLT14 names no file":
        archive.unlink()
    return archive


@pytest.mark.parametrize("kind", ["lacks", "lines on one side", "damaged", "IWSLT14 names no file"])
def test_a_wrong_archive_is_one_line_and_leaves_nothing(kind, tmp_path):
    done = prepare(IWSLT14, tmp_path / "out", IWSLT14=broken(kind, tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert kind in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_download_cut_short_is_removed(archive, tmp_path):
    root, whole = checkout(tmp_path / "checkout", IWSLT14), tmp_path / "de-en.tgz"
    run = lambda: prepare(IWSLT14, tmp_path / "out", "--merges", "50", root=root, IWSLT14_URL=f"file://{whole}")
    whole.write_bytes(archive.read_bytes()[:-100])
    done = run()
    assert done.returncode == 1 and "cut short" in done.stderr and not (tmp_path / "out").exists()
    whole.write_bytes(archive.read_bytes())
    done = run()
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "stats.json").is_file()


@pytest.fixture
def bible(tmp_path):
    """Files as the publisher names them."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name, number in (("Train", 30), ("Dev", 3), ("Test", 4)):
        for side, words in (("sourc", "And he saith"), ("tgt", "And he said")):
            lines = "".join(f"{words} {name} {i}, {'so ' * (i % 3)}it is.\n" for i in range(number))
            (folder / f"{name}.{side}").write_text(lines)
    return folder


def test_the_bible_is_downloaded_once(bible, tmp_path):
    root = checkout(tmp_path / "checkout", BIBLE)
    done = prepare(BIBLE, tmp_path / "out", "--merges", "50", root=root, BIBLE_URL=f"file://{bible}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("downloading") == 6
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert {name: counts["read"] for name, counts in stats["pairs"].items()} == {"train": 30, "valid": 3, "test": 4}
    assert (tmp_path / "out" / "raw" / "test.bbe").read_text() == (bible / "Test.tgt").read_text().replace("  ", " ")
    again = prepare(BIBLE, tmp_path / "out", "--merges", "50", root=root, BIBLE_URL="file:///nowhere")
    assert again.returncode == 0 and "reused as it is" in again.stdout


def test_the_bible_without_files(bible, tmp_path):
    root = checkout(tmp_path / "checkout", BIBLE)
    (bible / "Dev.tgt").unlink()
    done = prepare(BIBLE, tmp_path / "out", root=root, BIBLE_URL=f"file://{bible}")
    assert done.returncode == 1 and "cannot download" in done.stderr.strip().splitlines()[-1]
    done = prepare(BIBLE, tmp_path / "out", BIBLE=tmp_path / "nowhere")
    assert done.returncode == 1 and "BIBLE names no folder" in done.stderr
    assert not (tmp_path / "out").exists()


BASELINES = ("ar", "nat", "inat", "cmlm", "levt", "insertion")


def script(name, *arguments, **environment):
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
    line = ["bash", str(ROOT / "examples" / name), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, encoding="utf-8", env=variables)


@pytest.mark.parametrize("device, count", [("--cpu", 0), ("", 1)])
def test_a_worker_makes_a_gpus_batches(device, count):
    line = ["bash", "-c", f'source scripts/recipe.sh; workers "{device}"']
    assert subprocess.check_output(line, cwd=ROOT, encoding="utf-8") == f"{count}\n"


@pytest.mark.slow
def test_all_systems_stand_in_one_table(archive, tmp_path):
    """compare.sh trains and decodes FastDiSS and fairseq's models, and repeats nothing when called again."""
    assert prepare(IWSLT14, tmp_path / "data", "--merges", "50", IWSLT14=archive).returncode == 0
    options = {"UPDATES": "6", "DEVICE": "--cpu", "STEPS": "1 3", "ITERATIONS": "2", "METRICS": "chrF BLEU"}
    compare = lambda: script("compare.sh", tmp_path / "data", tmp_path / "out", "standard", *BASELINES, **options)
    done = compare()
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    results = tmp_path / "out" / "test" / "results.json"
    found = {(record["system"], record["steps"]) for record in json.loads(results.read_text())}
    refined = {(name, 2) for name in ("inat", "cmlm", "levt", "insertion")}
    assert found == {("standard", 1), ("standard", 3), ("ar_beam1", None), ("ar_beam5", None), ("nat", 1), *refined}
    logs = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/train.log")}
    assert len(logs) == 7
    assert compare().returncode == 0
    assert all(path.read_bytes() == log for path, log in logs.items())


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        (["bert", "data", "out"], {}, "unknown system bert"),
        (["ar", "data", "out"], {"ARCH": "huge"}, "unknown ARCH huge"),
        (["ar", "nowhere", "out"], {}, "training ar failed: see"),
    ],
)
def test_wrong_calls_of_baselines_are_one_line(arguments, environment, message, tmp_path):
    system, data, out = arguments
    done = script("baselines.sh", system, tmp_path / data, tmp_path / out, **environment)
    assert done.returncode == 1 and message in done.stderr.strip().splitlines()[-1]


def test_a_baseline_of_other_settings_is_not_taken_for_this_one(tmp_path):
    folder = tmp_path / "ar"
    folder.mkdir()
    settings = "data: ARCH=fastdiss_tiny UPDATES=9 MAX_TOKENS=4000 LR=2e-3 SEED=1 --dropout 0.3"
    for name, content in (("settings", settings), ("finished", ""), ("checkpoint_last.pt", "")):
        (folder / name).write_text(content)

    def called(*options, **environment):
        return script("baselines.sh", "ar", tmp_path / "data", tmp_path, *options, BEAMS="", **environment)

    assert called("--dropout", "0.3", UPDATES="9").returncode == 0
    done = called("--dropout", "0.3", UPDATES="10")
    assert done.returncode == 1 and f"holds another training, {settings}" in done.stderr
    assert called(UPDATES="9").returncode == 1


def test_compare_needs_a_prepared_folder(tmp_path):
    done = script("compare.sh", tmp_path, tmp_path / "out", "ar")
    assert done.returncode == 1 and "was it made by a prepare.sh" in done.stderr


def test_compare_looks_at_all_names_first(tmp_path):
    (tmp_path / "stats.json").write_text(
        json.dumps({"settings": {"source_lang": "a", "target_lang": "b", "tokenizer_langs": ["a", "b"]}})
    )
    done = script("compare.sh", tmp_path, tmp_path / "out", "ar", "bert")
    assert done.returncode == 1 and done.stderr == "compare.sh: unknown system bert\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "device, path, message", [("cpu", "out", "DEVICE must be --cpu or nothing, not cpu"), ("--cpu", "o'ut", "no '")]
)
def test_what_train_cannot_take_is_one_line(device, path, message, tmp_path):
    settings = {"recipe": "translation/multi30k", "source_lang": "a", "target_lang": "b", "tokenizer_langs": ["a", "b"]}
    (tmp_path / "stats.json").write_text(json.dumps({"settings": settings}))
    done = script("train.sh", tmp_path, tmp_path / path, DEVICE=device)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / path).exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=[str(path.relative_to(ROOT)) for path in SCRIPTS])
def test_help_explains_a_script_and_does_nothing(script, tmp_path):
    """In a folder of its own and without programs of the environment: what begins to work fails."""
    for asked in ("--help", "-h"):
        line = ["bash", script, asked]
        done = subprocess.run(line, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path)
        assert done.returncode == 0 and script.name in done.stdout and "#" not in done.stdout.splitlines()[0]
    assert list(tmp_path.iterdir()) == []


def test_scripts_that_name_their_program_can_be_run():
    named = [path for path in ROOT.joinpath("scripts").iterdir() if path.is_file() and path.read_bytes()[:2] == b"#!"]
    assert len(named) > 5 and [path.name for path in named if not os.access(path, os.X_OK)] == []
