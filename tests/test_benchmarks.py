"""The recipes of the paper's benchmarks on small archives of the publishers' layouts, from the archive to a score."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import published
import pytest

ROOT = Path(__file__).resolve().parent.parent
GIGAWORD, QQP, WIKI_AUTO = "summarization/gigaword", "paraphrase/qqp", "simplification/wiki_auto"
EN_RO, EN_DE = "translation/wmt16_en_ro", "translation/wmt14_en_de"
#: Overrides that make a training of seconds.
MINIATURE = [f"+model.{side}_{name}={n}" for side in ("encoder", "decoder") for name, n in
             (("embed_dim", 32), ("ffn_embed_dim", 64), ("layers", 1), ("attention_heads", 2))]  # fmt: skip
MINIATURE += ["+model.latent_dim=16", "optimization.max_update=3", "optimization.update_freq=[1]", "dataset.num_workers=0",
              "dataset.max_tokens=1000", "common.log_interval=1"]  # fmt: skip


def load_corpus_tool():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec = importlib.util.spec_from_file_location("published_corpus", ROOT / "scripts" / "published_corpus.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "scripts"))


tool = load_corpus_tool()


def call(script, *arguments, limit="", root=ROOT, **environment):
    """Run a script of examples/; ``limit`` are options of ulimit."""
    variables = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        **{k: str(v) for k, v in environment.items()},
    }
    variables["PATH"] = str(environment.get("PATH", "")) or os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    if limit:  # coverage could not save what it counted either
        variables = {name: value for name, value in variables.items() if not name.startswith("COVERAGE_")}
    line = ["bash", "-c", f'{limit and f"ulimit {limit}; "}exec bash "$@"', "bash", str(root / "examples" / script)]
    return subprocess.run([*line, *map(str, arguments)], capture_output=True, encoding="utf-8", env=variables)


def archive_for(recipe, folder):
    """The variable that names the recipe's local archive, and a small one."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        GIGAWORD: lambda: ("GIGAWORD", published.gigaword(folder / "summary.tar.gz")),
        QQP: lambda: ("QQP", published.diffuseq(folder, "QQP")),
        WIKI_AUTO: lambda: ("WIKI_AUTO", published.diffuseq(folder, "Wiki-Auto")),
        EN_RO: lambda: ("WMT16_EN_RO", published.wmt16_en_ro(folder / "wmt16.tar.gz")),
        EN_DE: lambda: ("WMT14", published.wmt14(folder / "wmt14")),
    }[recipe]()


# ------------------------------------------------------------------------------------------------------ layouts


def test_both_archives_of_gigaword_hold_the_same(tmp_path):
    langs, found = tool.gigaword(published.gigaword(tmp_path / "summary.tar.gz"), None)
    assert langs == ("article", "title") and {name: len(pairs) for name, pairs in found.items()} == {
        "train": 60,
        "valid": 4,
        "test": 5,
    }
    assert all("UNK 's" in article and "UNK" in title for article, title in found["train"] + found["test"])
    assert tool.gigaword(published.gigaword_of_unilm(tmp_path / "ggw_data.zip"), None)[1] == found


def test_json_lines_are_read_from_a_folder_or_an_archive(tmp_path):
    folder = published.diffuseq(tmp_path, "QQP")
    _, found = tool.diffuseq(folder, None)
    assert found["test"][0][0].startswith("How long is the ") and found["test"][0][1].startswith("What is ")
    files = {f"QQP/{path.name}": path.read_text() for path in folder.iterdir()}
    assert tool.diffuseq(published.write_zip(tmp_path / "qqp.zip", files), None)[1] == found
    (folder / "valid.jsonl").write_text('{"src": "a", "trg": "b"}\n["a", "b"]\n')
    with pytest.raises(tool.PreparationError, match="valid.jsonl, line 2: no JSON object"):
        tool.diffuseq(folder, None)


def test_quora_gives_its_duplicates(tmp_path):
    _, found = tool.quora(published.quora(tmp_path / "quora.tsv"), None)
    assert sum(map(len, found.values())) == 200 and len(found["valid"]) > 0 < len(found["test"])
    assert all(other.startswith('Is "') for pairs in found.values() for _, other in pairs)
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(tool.PreparationError, match="not Quora's table"):
        tool.quora(tmp_path / "other.tsv", None)


@pytest.mark.parametrize("source, target", [("en", "de"), ("de", "en")])
def test_wmt14_has_clean_sources_and_published_references(tmp_path, source, target):
    folder = published.wmt14(tmp_path)
    langs, found = tool.wmt14(folder, Namespace(source_lang=source))
    side = {lang: langs.index(lang) for lang in langs}
    assert {name: len(pairs) for name, pairs in found.items()} == {"train": 60, "valid": 4, "test": 5}
    assert all('"gut' in text and "„" not in text for pair in found["train"] for text in pair)
    for pair in found["valid"] + found["test"]:
        assert pair[side[source]].startswith("Q&A: ") and '"so"' in pair[side[source]]
        assert pair[side[target]].startswith("Q&A: ") and "„so“" in pair[side[target]]
    (folder / "dev.tgz").unlink()
    with pytest.raises(tool.PreparationError, match="there is no .*dev.tgz"):
        tool.wmt14(folder, Namespace(source_lang=source))


def test_bpe_of_wmt16_is_undone(tmp_path):
    langs, found = tool.wmt16_en_ro(published.wmt16_en_ro(tmp_path / "wmt16.tar.gz"), None)
    assert langs == ("en", "ro") and "@@" not in str(found)
    assert found["test"][0] == tuple(" ".join(published.splits()["test"][0][side]) + " &apos;s ." for side in (0, 2))


def test_sides_of_different_length_are_refused(tmp_path):
    files = {
        f"en-ro/{name}.bpe.{lang}": "a\nb\n"
        for name in ("train/corpus", "dev/dev", "test/test")
        for lang in ("en", "ro")
    }
    files["en-ro/dev/dev.bpe.ro"] += "c\n"
    with pytest.raises(tool.PreparationError, match="dev.bpe.en: 2 lines on one side but 3 on the other"):
        tool.wmt16_en_ro(published.write_tar(tmp_path / "wmt16.tar.gz", files), None)


# ----------------------------------------------------------------------------------------------- what goes wrong


def assert_one_line_and_nothing_left(done, folder, *parts):
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    for part in parts:
        assert part in done.stderr.strip().splitlines()[-1], done.stderr
    assert not (folder / "out").exists() and not list(folder.glob(".out*"))


@pytest.mark.parametrize("recipe", [GIGAWORD, QQP, WIKI_AUTO, EN_RO, EN_DE])
def test_a_damaged_archive_is_one_line_and_leaves_nothing(recipe, tmp_path):
    variable, archive = archive_for(recipe, tmp_path / "published")
    for file in [archive] if archive.is_file() else archive.iterdir():
        file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])
    done = call(f"{recipe}/prepare.sh", tmp_path / "out", **{variable: archive})
    assert_one_line_and_nothing_left(done, tmp_path, "published_corpus: ", str(archive) if archive.is_file() else ".")
    done = call(f"{recipe}/prepare.sh", tmp_path / "out", **{variable: tmp_path / "nowhere"})
    assert_one_line_and_nothing_left(done, tmp_path, f"{variable} names no f", "nowhere")


def checkout(folder):
    """A checkout without data."""
    folder.mkdir()
    for name in ("scripts", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_a_wrong_checksum_is_one_line_and_the_file_is_removed(tmp_path):
    whole = published.gigaword(tmp_path / "summary.tar.gz")
    options = dict(root=checkout(tmp_path / "checkout"), GIGAWORD_URL=f"file://{whole}")
    done = call(f"{GIGAWORD}/prepare.sh", tmp_path / "out", **options)
    assert_one_line_and_nothing_left(done, tmp_path, "summary.tar.gz: its SHA-256 is ", "not ffa257f3")
    assert not list((tmp_path / "checkout" / "data-bin" / "gigaword_raw").iterdir())


def test_a_download_cut_short_is_removed(tmp_path):
    folder = tmp_path / "site" / "wmt13"
    published.wmt14(folder)
    europarl = folder / "training-parallel-europarl-v7.tgz"
    europarl.write_bytes(europarl.read_bytes()[:-50])
    options = dict(root=checkout(tmp_path / "checkout"), WMT14_URL=f"file://{tmp_path}/site")
    done = call(f"{EN_DE}/prepare.sh", tmp_path / "out", **options)
    assert_one_line_and_nothing_left(
        done, tmp_path, "training-parallel-europarl-v7.tgz is no archive, or was cut short"
    )
    published.wmt14(folder)
    done = call(f"{EN_DE}/prepare.sh", tmp_path / "out", **options)  # what is under wmt14/ on the site is missing
    assert_one_line_and_nothing_left(done, tmp_path, "cannot download", "training-parallel-nc-v9.tgz", "set WMT14")
    kept = sorted(path.name for path in (tmp_path / "checkout" / "data-bin" / "wmt14_raw").iterdir())
    assert kept == ["training-parallel-commoncrawl.tgz", "training-parallel-europarl-v7.tgz"]


@pytest.mark.parametrize("recipe, variable", [(WIKI_AUTO, "WIKI_AUTO"), (EN_RO, "WMT16_EN_RO")])
def test_data_without_an_address_must_be_named(recipe, variable, tmp_path):
    done = call(f"{recipe}/prepare.sh", tmp_path / "out", root=checkout(tmp_path / "checkout"))
    assert_one_line_and_nothing_left(done, tmp_path, f"no public address to download from: set {variable}")


def test_missing_tools_are_one_line(tmp_path):
    variable, archive = archive_for(QQP, tmp_path)
    done = call(f"{QQP}/prepare.sh", tmp_path / "out", PYTHON="no-such-python", **{variable: archive})
    assert_one_line_and_nothing_left(done, tmp_path, "there is no no-such-python: set PYTHON")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "mkdir"):
        (programs / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
    done = call(f"{EN_DE}/prepare.sh", tmp_path / "out", root=checkout(tmp_path / "checkout"), PATH=programs)
    assert_one_line_and_nothing_left(done, tmp_path, "curl is missing; download https://www.statmt.org/", "set WMT14")


def test_a_disk_that_takes_no_more_is_one_line(tmp_path):
    """A limit on the size of files stands for the full disk."""
    variable, archive = archive_for(GIGAWORD, tmp_path)
    done = call(f"{GIGAWORD}/prepare.sh", tmp_path / "out", limit="-f 1", **{variable: archive})
    assert_one_line_and_nothing_left(done, tmp_path, "published_corpus: [Errno 27] File too large")
    raw = len(published.headlines()["train"][0]) // 1024 + 1  # kilobytes; split into letters the text is longer
    done = call(f"{GIGAWORD}/prepare.sh", tmp_path / "out", "--merges", 1, limit=f"-f {raw}", **{variable: archive})
    assert_one_line_and_nothing_left(done, tmp_path, "prepare_pairs: [Errno 27] File too large")


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("train.sh", ["{data}", "{out}"], "does not say its recipe"),
        ("generate.sh", ["{data}", "{data}/none.pt", "2"], "no checkpoint"),
        ("evaluate.sh", ["{data}", "{data}/none.txt"], "does not say its recipe"),
        ("evaluate.sh", ["{data}"], "evaluate.sh DATA GENERATED"),
    ],
)
def test_wrong_calls_are_explained(script, arguments, message, tmp_path):
    done = call(script, *(argument.format(data=tmp_path, out=tmp_path / "out") for argument in arguments))
    assert done.returncode == 1 and message in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["train.sh", "evaluate.sh"])
def test_data_of_no_recipe_need_one(script, tmp_path):
    settings = {"recipe": None, "source_lang": "de", "target_lang": "en", "tokenizer_langs": ["de", "en"]}
    (tmp_path / "stats.json").write_text(json.dumps({"settings": settings}))
    done = call(script, tmp_path, tmp_path / "out")
    assert done.returncode == 1 and "is of no recipe: set RECIPE" in done.stderr


# ------------------------------------------------------------------------------------- from the archive to a score

METRICS = {
    GIGAWORD: {"ROUGE-1", "ROUGE-2", "ROUGE-L"},
    QQP: {"BLEU", "tokBLEU", "sentenceBLEU", "ROUGE-L", "dist-1"},
    WIKI_AUTO: {"BLEU", "tokBLEU", "sentenceBLEU", "ROUGE-L", "dist-1", "SARI"},
    EN_RO: {"BLEU", "chrF", "tokBLEU"},
    EN_DE: {"BLEU", "chrF", "tokBLEU", "compoundBLEU"},
}


def sources(recipe, folder):
    """Options of :func:`call` for a recipe's data: downloaded where it has an address, else a local archive."""
    variable, archive = archive_for(recipe, folder / "published")
    if recipe == GIGAWORD:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        return dict(root=checkout(folder / "checkout"), GIGAWORD_URL=f"file://{archive}", GIGAWORD_SHA256=digest)
    if recipe == EN_DE:
        for year in ("wmt13", "wmt14"):
            (archive / year).mkdir()
        for file in archive.glob("*.tgz"):
            file.rename(archive / ("wmt13" if "europarl" in file.name or "crawl" in file.name else "wmt14") / file.name)
        return dict(root=checkout(folder / "checkout"), WMT14_URL=f"file://{archive}")
    direction = {"SOURCE_LANG": "ro", "TARGET_LANG": "en"} if recipe == EN_RO else {}
    return {variable: archive, **direction}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", METRICS)
def test_a_recipe_goes_from_the_archive_to_a_score(recipe, tmp_path):
    data, run = tmp_path / "out", tmp_path / "run"
    options = ["--merges", 60, "--max-ratio", 0, "--workers", 2]
    done = call(f"{recipe}/prepare.sh", data, *options, **sources(recipe, tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "extracted: train 60, valid 4, test 5" in done.stdout and "ready: " in done.stdout
    if recipe == EN_RO:  # binaries have the publisher's tokens, raw/ has text
        raw = (data / "raw" / "test.en").read_text().splitlines()
        assert raw == [" ".join(words) + "'s." for words, _, _ in published.splits()["test"]]
    stats = json.loads((data / "stats.json").read_text())
    assert stats["recipe"] == recipe and stats["pairs"]["test"] == {"read": 5}
    assert stats["pairs"]["train"] == {"read": 60, "not_empty": 60, "length": 60}
    done = call("train.sh", data, run, *MINIATURE, DEVICE="--cpu")
    assert done.returncode == 0, done.stdout[-2000:]
    assert list(run.glob("checkpoint.best_bleu_*.pt")) and "num_updates 3" in (run / "train.log").read_text()
    done = call("generate.sh", data, run / "checkpoint_last.pt", 2, DEVICE="--cpu")
    assert done.returncode == 0 and done.stdout.strip() == str(run / "test_k2.txt"), done.stderr[-2000:]
    done = call("evaluate.sh", data, run / "test_k2.txt")
    assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads(done.stdout)
    assert scores.pop("sentences") == 5 and set(scores) == METRICS[recipe]


@pytest.mark.slow
def test_quoras_own_table_is_split(tmp_path):
    table = published.quora(tmp_path / "quora.tsv")
    done = call(f"{QQP}/prepare.sh", tmp_path / "out", "--merges", 60, QUORA=table)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "a split of Quora's table, not DiffuSeq's" in done.stdout
    pairs = json.loads((tmp_path / "out" / "stats.json").read_text())["pairs"]
    assert sum(counts["read"] for counts in pairs.values()) == 200 and "no_overlap" in pairs["train"]


@pytest.mark.slow
def test_a_teacher_is_trained_and_writes_the_targets(data, tmp_path):
    options = dict(DEVICE="--cpu", UPDATES=6)
    done = call("distill.sh", data, tmp_path / "distilled", "--beam", 1, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "120 training targets by the teacher" in done.stdout
    changed = {
        path.name for path in data.iterdir() if path.read_bytes() != (tmp_path / "distilled" / path.name).read_bytes()
    }
    assert changed == {"train.src-tgt.tgt.bin", "train.src-tgt.tgt.idx"}
    assert "is there already" in call("distill.sh", data, tmp_path / "distilled", **options).stdout


def test_every_recipe_has_settings():
    recipes = {path.parent.name for path in (ROOT / "examples").glob("*/*/prepare.sh")}
    assert recipes == {path.stem for path in (ROOT / "examples" / "config" / "recipe").glob("*.yaml")}
