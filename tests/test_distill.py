"""fastdiss-distill: training targets by a teacher."""

import hashlib
import json
import shutil
from argparse import Namespace

import pytest
from conftest import PLUGIN, command, lines, train
from fairseq.data import data_utils
from test_tools import assert_one_line_error, tool

from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.tools import distill


def sentences(folder, split, language):
    """Token ids of one side of a split."""
    found = data_utils.load_indexed_dataset(str(folder / f"{split}.src-tgt.{language}"))
    return [tokens.tolist() for tokens in found]


def run(data, teacher, output, *options):
    distill.main([str(data), "--path", str(teacher), "--output", str(output), "--cpu", *map(str, options)])
    return output


@pytest.fixture(scope="module")
def distilled(data, transformer, tmp_path_factory):
    output = tmp_path_factory.mktemp("distilled") / "data"
    tool("distill", data, "--path", transformer, "--output", output, "--beam", 2, "--cpu", "--max-tokens", 100)
    return output


def test_targets_are_what_the_teacher_generates(data, transformer, distilled):
    options = ["--path", transformer, "--task", "translation", "--gen-subset", "train", "--beam", 2, "--cpu"]
    decoded = lines(
        command("generate", data, "--user-dir", PLUGIN, *options, "--required-batch-size-multiple", 1).stdout, "H"
    )
    dictionary = [line.split()[0] for line in (data / "dict.tgt.txt").read_text().splitlines()]
    words = [" ".join(dictionary[i - 4] for i in tokens[:-1]) for tokens in sentences(distilled, "train", "tgt")]
    assert words == [decoded[str(i)][0].split("\t")[1] for i in range(120)]
    assert all(tokens[-1] == 2 for tokens in sentences(distilled, "train", "tgt"))
    assert sentences(distilled, "train", "tgt") != sentences(data, "train", "tgt")


def test_the_rest_of_the_folder_is_the_same(data, distilled):
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    names = {path.name for path in data.iterdir()}
    assert {path.name for path in distilled.iterdir()} == names | {"distilled.json"}
    changed = {name for name in names if digest(data / name) != digest(distilled / name)}
    assert changed == {"train.src-tgt.tgt.bin", "train.src-tgt.tgt.idx"}
    assert not distilled.with_name("data.parts").exists()


def test_a_model_trains_on_it(distilled, tmp_path):
    train(distilled, tmp_path, "--max-update", 2)
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_shards_and_interruptions_change_nothing(data, transformer, distilled, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "PIECE", 32)  # four pieces
    output, parts = tmp_path / "data", tmp_path / "data.parts"
    run(data, transformer, output, "--beam", 2, "--shard", "2/3")
    assert sorted(path.name for path in parts.iterdir()) == ["00001.json", "settings.json"]
    with pytest.raises(FastDiSSError, match="data.parts holds other work: beam differ"):
        run(data, transformer, output, "--beam", 3)
    other = shutil.copytree(data, tmp_path / data.name)
    for suffix in ("bin", "idx"):
        shutil.copyfile(data / f"valid.src-tgt.tgt.{suffix}", other / f"train.src-tgt.tgt.{suffix}")
        shutil.copyfile(data / f"valid.src-tgt.src.{suffix}", other / f"train.src-tgt.src.{suffix}")
    with pytest.raises(FastDiSSError, match="data_sha256 differ"):  # its sentences would get others' targets
        run(other, transformer, output, "--beam", 2)
    written = []
    save = distill.save

    def interrupted(path, content, **how):
        save(path, content, **how)
        written.append(path.name)
        if path.name == "00002.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(distill, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data, transformer, output, "--beam", 2)
    monkeypatch.setattr(distill, "save", save)
    assert written == ["00000.json", "00002.json"] and not output.exists()
    run(data, transformer, output, "--beam", 2)
    assert sentences(output, "train", "tgt") == sentences(distilled, "train", "tgt") and not parts.exists()


def test_sentences_without_a_hypothesis_keep_their_target(data, transformer, tmp_path):
    args = Namespace(data=data, path=str(transformer), cpu=True, beam=2)
    teacher = distill.Teacher(args)
    empty = [{"tokens": teacher.dataset[0]["target"][-1:]}]  # </s> alone
    teacher.task.inference_step = lambda generator, models, sample: [empty] * len(sample["id"])
    assert teacher.write([5, 3], 1000) == {i: teacher.dataset[i]["target"].tolist() for i in (5, 3)}


def test_batches_hold_at_most_the_tokens_asked_for():
    sizes = [1, 2, 2, 3, 4, 50]
    assert list(distill.batches(range(6), sizes, 8)) == [[0, 1, 2], [3, 4], [5]]
    assert list(distill.batches([], sizes, 8)) == []


def test_mistakes_are_one_line(data, transformer, distilled, tmp_path):
    def mistake(*options, folder=data, path=transformer, output=tmp_path / "new"):
        return tool("distill", folder, "--path", path, "--output", output, "--cpu", *options, check=False)

    assert_one_line_error(mistake(path=tmp_path / "no.pt"), "no checkpoint")
    assert_one_line_error(mistake(folder=tmp_path / "none"), "no data folder")
    other = shutil.copytree(data, tmp_path / "other")
    for side in ("src", "tgt"):
        with open(other / f"dict.{side}.txt", "a") as stream:
            stream.write("onemore 1\n")
    assert_one_line_error(mistake(folder=other), "the dictionaries of", "do not fit")
    assert_one_line_error(mistake("--shard", "3/2"), "--shard takes I/N")
    assert_one_line_error(mistake("--beam", 0), "--beam")
    assert_one_line_error(mistake(output=distilled), "exists already")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/", "-1/2"])
def test_shards_are_checked(text):
    assert distill.shard("2/4") == (1, 4)
    with pytest.raises(FastDiSSError):
        distill.shard(text)


def test_the_record_says_who_taught(transformer, distilled):
    found = json.loads((distilled / "distilled.json").read_text())
    assert found == {"beam": 2, "teacher_sha256": distill.sha256(transformer)}
