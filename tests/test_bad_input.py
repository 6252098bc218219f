"""Mistakes of the user: one clear line, a non-zero exit, nothing trained or overwritten."""

import random

import pytest

from conftest import PLUGIN, command, fastdiss, generate, preprocess, train, write_pairs


def message(done):
    """The line that explains; asserts that the command failed without a traceback."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--decoding-steps", "0"], "at least 1"),
        (["--decoding-steps", "many"], "invalid int value"),
        (["--decoding-solver", "heun"], "invalid choice"),
        (["--decoding-choice", "best"], "invalid choice"),
        (["--length-beam", "0"], "--length-beam"),
        (["--noise-beam", "-1"], "--noise-beam"),
        (["--decoding-choice", "ar"], "second --path"),
        (["--gen-subset", "dev"], "no split 'dev'"),
        (["--decoding-noise-factor", "0"], "positive"),
        (["--source-lang", "xx", "--target-lang", "tgt"], "no dictionary dict.xx.txt"),
        (["--score-reference"], "--score-reference"),
        (["--prefix-size", "2"], "--prefix-size"),
    ],
)
def test_generate(data, checkpoint, options, words):
    assert words in message(generate(data, checkpoint, *options, check=False))


@pytest.mark.parametrize(
    "options, words",
    [
        (["--mans-scale", "2,3", "--mans-phase", "10,20"], "2 MANS scales need 1"),
        (["--mans-scale", "2,3,4", "--mans-phase", "20,10", "--mans-start", "0"], "must increase"),
        (["--mans-scale", "0.5"], "at least 1"),
        (["--max-update", "0", "--max-epoch", "1"], "--max-update"),
        (["--scp-hops", "3"], "hops"),
        (["--mixed-times", "1.5"], "--mixed-times must be a probability"),
        (["--self-conditioning-prob", "-0.1"], "--self-conditioning-prob must be a probability"),
        (["--scp-rule", "near"], "invalid choice"),
        (["--noise-schedule", "square"], "invalid choice"),
        (["--noise-factor", "-1"], "--noise-factor"),
        (["--decoder-attention-heads", "5"], "--decoder-attention-heads"),
        (["--fp16"], "needs a GPU"),
        (["--bf16"], "--autocast bf16"),
        (["--eval-bleu", "--eval-bleu-args", '{"decoding_step": 3}'], "decoding_step"),
        (["--eval-bleu", "--eval-bleu-args", '{"decoding_steps": 0}'], "at least 1"),
    ],
)
def test_train(data, tmp_path, options, words):
    assert words in message(train(data, tmp_path / "run", "--max-update", 2, *options, check=False))
    assert not list((tmp_path / "run").glob("*.pt"))


def test_missing_data_folder(tmp_path, checkpoint):
    assert "no data folder" in message(generate(tmp_path / "nowhere", checkpoint, check=False))


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    """Data with a dictionary of another size."""
    folder = tmp_path_factory.mktemp("other")
    for split in ("train", "valid", "test"):
        write_pairs(folder, split, 4, random.Random(2))
    return preprocess(folder, folder / "bin")


def test_dictionary_of_another_size(other_data, checkpoint):
    line = message(generate(other_data, checkpoint, check=False))
    assert "the dictionary has" in line and "the checkpoint" in line


def test_reranker_with_another_dictionary(data, other_data, checkpoint, tmp_path):
    sizes = [f"--{side}-{name}=16" for side in ("encoder", "decoder") for name in ("embed-dim", "ffn-embed-dim")]
    command(
        "train",
        other_data,
        "--user-dir",
        PLUGIN,
        "--arch",
        "transformer",
        *sizes,
        "--encoder-layers",
        1,
        "--decoder-layers",
        1,
        "--optimizer",
        "adam",
        "--max-tokens",
        400,
        "--cpu",
        "--max-update",
        1,
        "--save-dir",
        tmp_path,
        "--required-batch-size-multiple",
        1,
        "--num-workers",
        0,
    )
    pair = f"{checkpoint}:{tmp_path / 'checkpoint_last.pt'}"
    assert "the dictionary has" in message(generate(data, pair, "--decoding-choice", "ar", check=False))


def test_checkpoint_of_another_model(data, transformer):
    assert "not a FastDiSS model" in message(generate(data, transformer, check=False))


def test_shared_embeddings_need_a_joined_dictionary(other_data, tmp_path):
    done = train(other_data, tmp_path, "--max-update", 1, "--share-all-embeddings", check=False)
    assert "joined dictionary" in message(done)


def test_missing_language_pair(tmp_path):
    assert "cannot infer the languages" in message(
        fastdiss(
            "train",
            tmp_path,
            "--max-tokens",
            10,
            "--arch",
            "fastdiss_tiny",
            "--criterion",
            "fastdiss_loss",
            "--optimizer",
            "adam",
            check=False,
        )
    )
