"""Data folders as older fairseq wrote them train and decode as today's do."""

import shutil

import numpy as np
import pytest
from commands import in_process
from conftest import MODEL, TRAINING, lines, preprocess

from fairseq.data import indexed_dataset

SPLITS, SIDES = ("train", "valid", "test"), ("src", "tgt")


def rewritten(data, folder, write):
    """A copy of a data folder whose splits ``write(path, sentences)`` has written anew."""
    shutil.copytree(data, folder)
    for split in SPLITS:
        for side in SIDES:
            path = folder / f"{split}.src-tgt.{side}"
            read = indexed_dataset.make_dataset(str(data / path.name), impl="mmap")
            sentences = [read[i] for i in range(len(read))]
            for end in (".bin", ".idx"):
                path.with_name(path.name + end).unlink()
            write(path, sentences)
    return folder


def memory_mapped(path, sentences):
    """0.9 and 0.10: memory-mapped with 32 bits a word, whatever the dictionary's size (today 16 where they do)."""
    builder = indexed_dataset.MMapIndexedDatasetBuilder(f"{path}.bin", dtype=np.int32)
    for sentence in sentences:
        builder.add_item(sentence)
    builder.finalize(f"{path}.idx")


def indexed(path, sentences):
    """Before 0.9: the format of Torch, with 1 added to each word."""
    builder = indexed_dataset.IndexedDatasetBuilder(f"{path}.bin", dtype=np.int32)
    for sentence in sentences:
        builder.add_item(sentence)
    builder.finalize(f"{path}.idx")


def works(data, folder, *options):
    """Train for two updates, and the hypotheses of the test set."""
    common = ["--task", "fastdiss", *options]
    train = ["train", data, *common, *MODEL, "--criterion", "fastdiss_loss", *TRAINING, "--dropout", 0]
    done = in_process([*train, "--max-update", 2, "--disable-validation", "--save-dir", folder])
    assert done.returncode == 0, done.stderr[-2000:]
    path = folder / "checkpoint_last.pt"
    done = in_process(["generate", data, *common, "--cpu", "--path", path, "--decoding-steps", 2])
    assert done.returncode == 0, done.stderr[-2000:]
    found = lines(done.stdout, "H")
    assert len(found) == 10
    return {key: rest[0].split("\t")[1] for key, rest in found.items()}


def test_data_of_fairseq_0_9_is_the_same_data(data, tmp_path):
    old = rewritten(data, tmp_path / "old", memory_mapped)
    assert works(old, tmp_path / "a") == works(data, tmp_path / "b")


def test_data_of_before_0_9_needs_an_option(data, tmp_path):
    old = rewritten(data, tmp_path / "old", indexed)
    assert works(old, tmp_path / "a", "--dataset-impl", "lazy") == works(data, tmp_path / "b")
    done = in_process(["generate", old, "--task", "fastdiss", "--cpu", "--path", tmp_path / "b" / "checkpoint_last.pt"])
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"error: {old} is of fairseq before 0.9: add --dataset-impl lazy")


@pytest.mark.parametrize("side", SIDES)
def test_dictionaries_of_their_own_and_both_directions(text, side, tmp_path):
    data = preprocess(text, tmp_path / "data")
    assert (data / "dict.src.txt").read_text() != (data / "dict.tgt.txt").read_text()
    other = SIDES[1 - SIDES.index(side)]
    works(data, tmp_path / "run", "--source-lang", side, "--target-lang", other)


def test_padding_of_the_source_on_either_side_is_the_same(data, tmp_path):
    """The default of stock translation is the left, ours the right; positions are counted from the first real token."""
    assert works(data, tmp_path / "left", "--left-pad-source") == works(data, tmp_path / "right")


def test_dictionaries_with_padding_words(data, tmp_path):
    """``--padding-factor`` made them longer than the text needs; nothing of a joined dictionary is assumed."""
    old = shutil.copytree(data, tmp_path / "old")
    with open(old / "dict.tgt.txt", "a") as stream:
        stream.writelines(f"madeupword{i + 900:04d} 0\n" for i in range(5))
    works(old, tmp_path / "run")
