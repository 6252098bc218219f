"""fairseq's ``--fp16``, ``--memory-efficient-fp16`` and ``--amp``: scaled losses, overflows, and going on from a checkpoint.

Where there is no GPU, fairseq's own code runs on the CPU in float16: what asks for a GPU is given the CPU instead.
"""

import functools
import re

import pytest
import torch
from commands import in_process
from conftest import MODEL, TRAINING, lines
from test_exactness import load

pytestmark = pytest.mark.torch_2

GPU = torch.cuda.is_available()
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 4)
WAYS = {"fp16": ["--fp16"], "memory-efficient": ["--memory-efficient-fp16"], "amp": ["--amp"]}
every_way = pytest.mark.parametrize("way", list(WAYS))
#: Gradients times this are no float16, times fairseq's default, 128, they are.
TOO_LARGE = 2**22


def on_device(options):
    return [option for option in options if not (GPU and option == "--cpu")]


@pytest.fixture
def train(data, tmp_path, caplog):
    """Trains for twelve updates, or fewer, into a folder of ``tmp_path``; gives the process, with the log."""

    def run(folder, *options):
        caplog.clear()
        caplog.set_level("INFO")
        line = ["train", data, "--task", "fastdiss", *MODEL, "--criterion", "fastdiss_loss", *on_device(TRAINING)]
        line += ["--max-update", 12, "--log-interval", 1, "--save-dir", tmp_path / folder]
        done = in_process([*line, *options])
        done.log = caplog.text
        return done

    return run


@pytest.fixture(autouse=True)
def the_cpu_for_a_gpu(monkeypatch):
    if GPU:
        return
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("needs torch 2.3 or a GPU")
    monkeypatch.setattr("fastdiss_fairseq.tasks.fastdiss.device", lambda cfg: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu").index)
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", functools.partial(torch.amp.GradScaler, "cpu"))
    in_float16 = functools.partial(torch.autocast, "cpu", dtype=torch.float16)
    monkeypatch.setattr(torch.cuda.amp, "autocast", in_float16)


def losses(done):
    """{update: loss}"""
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"train_inner.* loss=([\d.]+),.* num_updates=(\d+)", done.log)
    return {int(update): float(loss) for loss, update in found}


def overflows(done):
    return done.log.count("overflow detected")


@every_way
def test_trains_as_in_float32(way, train):
    exact = ["--dropout", 0]  # a GPU draws other units to drop in half precision
    half, whole = train(way, *WAYS[way], *exact), train("float32", *exact)
    assert not overflows(half) and losses(half) == pytest.approx(losses(whole), rel=0.01)
    assert losses(half) != losses(whole) and set(losses(half)) == set(range(1, 13))


@pytest.mark.skipif(OLD, reason="fused on a CPU from torch 2.4 on")
@pytest.mark.parametrize("way", ["fp16", "amp"])
def test_the_fused_adam_trains_alike_and_takes_the_others_state(way, train, tmp_path):
    options = [*WAYS[way], "--dropout", 0, "--mans-start", 2]
    whole = losses(train("adam", *options))
    assert losses(train("fused", *options, "--optimizer", "fused_adam")) == pytest.approx(whole, rel=0.01)
    train("parts", *options, "--max-update", 6)
    later = losses(train("parts", *options, "--optimizer", "fused_adam"))
    assert later == pytest.approx({update: whole[update] for update in range(7, 13)}, rel=0.01)
    state = load(tmp_path / "parts/checkpoint_last.pt")["last_optimizer_state"]
    assert all(group["fused"] for group in state["param_groups"])


def test_the_fused_adam_is_not_memory_efficient(train):
    done = train("half", "--memory-efficient-fp16", "--optimizer", "fused_adam", "--max-update", 1)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith(
        "fastdiss: error: --memory-efficient"
    )


@every_way
def test_the_checkpoint_decodes(way, train, data, tmp_path):
    losses(train("half", *WAYS[way], "--eval-bleu", "--eval-bleu-args", '{"decoding_steps": 2}'))
    decode = ["generate", data, "--task", "fastdiss", "--path", tmp_path / "half/checkpoint_last.pt"]
    done = in_process([*decode, "--decoding-steps", 3, *on_device(["--cpu"])])
    assert len(lines(done.stdout, "H")) == 10, done.stderr[-3000:]


@every_way
def test_updates_that_overflow_are_left_out(way, train, tmp_path):
    done = train("half", *WAYS[way], "--fp16-init-scale", TOO_LARGE, "--amp-batch-retries", 1)
    assert 0 < overflows(done) and losses(done)
    assert load(tmp_path / "half/checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 12


@every_way
def test_a_scale_that_can_fall_no_further_ends_in_one_line(way, train):
    done = train("half", *WAYS[way], "--fp16-init-scale", TOO_LARGE, "--min-loss-scale", TOO_LARGE / 2)
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and message.startswith("fastdiss: error: update 1 stopped: "), done.stderr[-3000:]
    assert "inimum loss scale reached" in message and "holds the sentences [" in message


@every_way
def test_going_on_equals_never_having_stopped(way, train, tmp_path):
    """To the bit, but for ``--fp16``: fairseq saves its weights in float16, and trains float32 copies of them."""
    options = [*WAYS[way], "--update-freq", 2, "--save-interval-updates", 5, "--mans-start", 2]
    whole = losses(train("whole", *options))
    parts = {**losses(train("parts", *options, "--max-update", 5)), **losses(train("parts", *options))}
    saved, expected = (load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("parts", "whole"))
    tolerance = 2e-3 if way == "fp16" else 0  # losses are logged in thousandths
    assert parts == pytest.approx(whole, abs=tolerance) and saved.keys() == expected.keys()
    assert way == "fp16" or all(torch.equal(saved[name], expected[name]) for name in expected)
