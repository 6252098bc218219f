"""The IWSLT14 recipe, on a small archive of the publisher's layout."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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


def prepare(destination, *options, **environment):
    script = ROOT / "examples" / "translation" / "iwslt14" / "prepare.sh"
    return subprocess.run(
        ["bash", str(script), str(destination), *options],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHON": sys.executable, **{name: str(value) for name, value in environment.items()}},
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("iwslt14") / "de-en.tgz", members())


@pytest.mark.parametrize("source, target", [("de", "en"), ("en", "de")])
def test_the_archive_becomes_a_data_folder(archive, tmp_path, source, target):
    out = tmp_path / "out"
    done = prepare(out, "--merges", "50", IWSLT14=archive, SOURCE_LANG=source, TARGET_LANG=target)
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
    if kind == "lines of de":
        files["de-en/train.tags.de-en.en"] += "one more\n"
    archive = write_archive(tmp_path / "de-en.tgz", files)
    if kind == "damaged":
        archive.write_bytes(archive.read_bytes()[:-200])
    if kind == "IWSLT14 names no file":
        archive.unlink()
    return archive


@pytest.mark.parametrize("kind", ["lacks", "lines of de", "damaged", "IWSLT14 names no file"])
def test_a_wrong_archive_is_one_line_and_leaves_nothing(kind, tmp_path):
    done = prepare(tmp_path / "out", IWSLT14=broken(kind, tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert kind in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_download_cut_short_is_removed(archive, tmp_path):
    whole = tmp_path / "de-en.tgz"
    whole.write_bytes(archive.read_bytes())
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    recipe = tmp_path / "examples" / "translation" / "iwslt14"
    recipe.mkdir(parents=True)
    (recipe / "prepare.sh").write_bytes((ROOT / "examples" / "translation" / "iwslt14" / "prepare.sh").read_bytes())
    run = lambda: subprocess.run(
        ["bash", str(recipe / "prepare.sh"), str(tmp_path / "out"), "--merges", "50"],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHON": sys.executable, "IWSLT14_URL": f"file://{whole}"},
    )
    whole.write_bytes(archive.read_bytes()[:-100])
    done = run()
    assert done.returncode == 1 and "cut short" in done.stderr and not (tmp_path / "out").exists()
    whole.write_bytes(archive.read_bytes())
    done = run()
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "stats.json").is_file()
