"""Fixtures: a toy corpus and checkpoints, made with fairseq's own commands."""

import os
import random
from pathlib import Path

import pytest
import torch
from forked import run as run_forked
from hypothesis import settings

#: The same few examples at each run, however slow the machine.
settings.register_profile("fixed", max_examples=25, derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = str(ROOT / "fastdiss_fairseq")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "MULTI30K": ""}

#: A model small enough that a training run takes seconds.
MODEL = (
    "--arch fastdiss_tiny --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 64 "
    "--decoder-ffn-embed-dim 64 --encoder-layers 1 --decoder-layers 1 --latent-dim 16 --dropout 0.1"
).split()
TRAINING = (
    "--optimizer adam --lr 0.003 --max-tokens 400 --cpu --num-workers 0 --log-format simple "
    "--log-interval 5 --no-epoch-checkpoints --train-subset train --seed 7"
).split()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: needs minutes; run with --slow")
    config.addinivalue_line(
        "markers", "torch_2: what torch 1 cannot do on a CPU: half precision, bfloat16, its own attention"
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs --slow"))
    if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        for item in items:
            if "torch_2" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs torch 2"))


def command(name, *arguments, stdin=None, check=True, cwd=None):
    """Run a fairseq command (``train``, ``generate``, ...) as a user would; returns the process."""
    done = run_forked(f"fairseq_cli.{name.replace('-', '_')}", arguments, ENVIRONMENT, cwd or "/", stdin or "")
    if check and done.returncode != 0:
        raise AssertionError(f"{name} exited {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def fastdiss(name, data, *arguments, **options):
    """A command with the plugin and its task."""
    return command(name, data, "--user-dir", PLUGIN, "--task", "fastdiss", *arguments, **options)


def train(data, save_dir, *arguments, **options):
    """Train a FastDiSS model on the CPU."""
    line = [*MODEL, "--criterion", "fastdiss_loss", *TRAINING, "--save-dir", save_dir, *arguments]
    return fastdiss("train", data, *line, **options)


def generate(data, checkpoint, *arguments, **options):
    """Decode the test set on the CPU."""
    return fastdiss("generate", data, "--path", checkpoint, "--cpu", *arguments, **options)


def lines(output, kind):
    """The lines of fairseq's output that begin with ``kind`` (H, D, T, ...): {id: rest}."""
    found = {}
    for line in output.splitlines():
        head, _, rest = line.partition("\t")
        if head.startswith(f"{kind}-"):
            found.setdefault(head[len(kind) + 1 :], []).append(rest)
    return found


def write_pairs(folder, split, count, generator):
    """A toy language pair: the target is the source, word by word in other letters, reversed."""
    sources, targets = [], []
    for _ in range(count):
        words = [generator.randrange(20) for _ in range(generator.randint(2, 9))]
        sources.append(" ".join(f"s{w}" for w in words))
        targets.append(" ".join(f"t{w}" for w in reversed(words)))
    (folder / f"{split}.src").write_text("\n".join(sources) + "\n")
    (folder / f"{split}.tgt").write_text("\n".join(targets) + "\n")


def preprocess(folder, destination, *arguments):
    options = ["--trainpref", folder / "train", "--validpref", folder / "valid", "--testpref", folder / "test"]
    command("preprocess", "-s", "src", "-t", "tgt", *options, "--destdir", destination, "--workers", 1, *arguments)
    return destination


def preprocess_to_memorise(folder):
    """Fifty pairs that are training, validation and test set at once."""
    write_pairs(folder, "train", 50, random.Random(5))
    for split in ("valid", "test"):
        for side in ("src", "tgt"):
            (folder / f"{split}.{side}").write_text((folder / f"train.{side}").read_text())
    return preprocess(folder, folder / "bin", "--joined-dictionary")


#: Options of a model that can learn them by heart.
MEMORY = "--encoder-embed-dim 64 --decoder-embed-dim 64 --dropout 0 --disable-validation --clip-norm 1".split()


def bleu_of(done):
    """The BLEU that fairseq-generate printed."""
    return float(done.stdout.rsplit("BLEU4 = ", 1)[1].split(",")[0])


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(3)
    for split, count in (("train", 120), ("valid", 13), ("test", 10)):
        write_pairs(folder, split, count, generator)
    return folder


@pytest.fixture(scope="session")
def data(text, tmp_path_factory):
    """Binarised toy data: 120 training, 13 validation and 10 test pairs."""
    return preprocess(text, tmp_path_factory.mktemp("data"), "--joined-dictionary")


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """A folder with a checkpoint of 12 updates, trained with BLEU in validation."""
    folder = tmp_path_factory.mktemp("run")
    done = train(
        data,
        folder,
        "--max-update",
        12,
        "--eval-bleu",
        "--eval-bleu-args",
        '{"decoding_steps": 3}',
        "--best-checkpoint-metric",
        "bleu",
        "--maximize-best-checkpoint-metric",
    )
    (folder / "log").write_text(done.stdout + done.stderr)
    return folder


@pytest.fixture(scope="session")
def checkpoint(run):
    return run / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def transformer(data, tmp_path_factory):
    """A stock autoregressive checkpoint on the same data."""
    folder = tmp_path_factory.mktemp("transformer")
    sizes = [
        f"--{side}-{name}={n}"
        for side in ("encoder", "decoder")
        for name, n in (("embed-dim", 32), ("ffn-embed-dim", 64), ("layers", 1), ("attention-heads", 2))
    ]
    command(
        "train",
        data,
        "--user-dir",
        PLUGIN,
        "--task",
        "translation",
        "--arch",
        "transformer",
        *sizes,
        "--criterion",
        "label_smoothed_cross_entropy",
        *TRAINING,
        "--max-update",
        4,
        "--save-dir",
        folder,
        "--required-batch-size-multiple",
        1,
    )
    return folder / "checkpoint_last.pt"
