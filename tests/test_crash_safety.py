"""Trainings that are killed, cut short or out of disk go on from a whole checkpoint and end where they would have."""

import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import in_process
from conftest import ENVIRONMENT, MODEL, PLUGIN, TRAINING
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from fastdiss_fairseq import safety
from fastdiss_fairseq.criterions.fastdiss import FastDiSSLossConfig
from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.safety import moved_phases

#: Saving at each update, a model of a few megabytes spends as much time on writing checkpoints as on updates.
SAVING = "--save-interval-updates 1 --keep-interval-updates 2 --disable-validation --encoder-ffn-embed-dim 4096".split()


def training(data, folder, *options):
    line = ["train", data, "--task", "fastdiss", *MODEL, "--criterion", "fastdiss_loss", *TRAINING]
    return [*line, "--no-scp", "--no-mans", "--save-dir", folder, *options]


def process(line, log, **options):
    """Start a command with its output in a file."""
    name, *arguments = map(str, line)
    start = [sys.executable, "-m", f"fairseq_cli.{name}", *arguments, "--user-dir", PLUGIN]
    with open(log, "w") as stream:
        return subprocess.Popen(start, stdout=stream, stderr=subprocess.STDOUT, env=ENVIRONMENT, **options)


def load(path):
    return torch.load(path, map_location="cpu")


def updates(path):
    return load(path)["optimizer_history"][-1]["num_updates"]


def last_number(pattern, log):
    """The last number that a pattern finds in a log, or 0."""
    found = re.findall(pattern, log.read_text())
    return int(found[-1]) if found else 0


def kill_at_random(data, folder, generator, until):
    """Start or resume a training and kill it a random time after its first new update; returns what is told of it:
    the update it began from, the last that it had reported as saved when it was killed, and the files it left
    half written."""
    log = folder / "log"
    running = process(training(data, folder, *SAVING, "--max-update", until), log)
    while not re.search(r"Saved checkpoint", log.read_text()) and running.poll() is None:
        time.sleep(0.02)
    time.sleep(generator.uniform(0, 1.0))
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, log.read_text()[-2000:]
    began = last_number(r"Loaded checkpoint .* @ (\d+) updates", log)
    saved = last_number(r"Saved checkpoint .* @ (\d+) updates", log)
    return began, saved, sorted(path.name for path in folder.glob("*.tmp"))


@pytest.mark.slow
def test_a_training_killed_at_random_moments_ends_as_if_it_had_not_been(data, tmp_path):
    generator, saved = random.Random(8), 0
    for _ in range(20):
        began, reported, _ = kill_at_random(data, tmp_path, generator, 10_000)
        assert began >= saved and reported > began
        assert all(safety.fault(path) == "" for path in tmp_path.glob("*.pt"))
        saved = reported
    end = updates(tmp_path / "checkpoint_last.pt") + 2
    assert process(training(data, tmp_path, *SAVING, "--max-update", end), tmp_path / "log").wait() == 0
    whole = tmp_path / "whole"
    whole.mkdir()
    never = [option for option in SAVING if option not in ("--save-interval-updates", "1")]
    assert process(training(data, whole, *never, "--max-update", end), whole / "log").wait() == 0
    resumed, straight = (load(folder / "checkpoint_last.pt")["model"] for folder in (tmp_path, whole))
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """Six updates, saved at 2 and 4 (within epochs) and at the end."""
    folder = tmp_path_factory.mktemp("begun")
    done = in_process(training(data, folder, "--save-interval-updates", 2, "--max-update", 6, "--disable-validation"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def saved(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "saved")


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_truncated_last_checkpoint_is_named_and_the_newest_whole_one_taken(data, saved, share, caplog):
    newest = max(saved.glob("checkpoint_*_*.pt"), key=updates)
    cut(saved / "checkpoint_last.pt", share)
    done = in_process(training(data, saved, "--max-update", 8, "--disable-validation"))
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [record.message for record in caplog.records if record.name == "fastdiss_fairseq.safety"]
    assert str(saved / "checkpoint_last.pt") in line and str(newest) in line
    assert f"Loaded checkpoint {newest} " in caplog.text
    assert updates(saved / "checkpoint_last.pt") == 8


def test_going_on_with_other_options_is_remarked_on(data, saved, caplog):
    changed = ["--noise-factor", 3, "--self-conditioning-prob", 0.25, "--max-update", 8, "--disable-validation"]
    done = in_process(training(data, saved, *changed, "--lr", 0.01))
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [record.message for record in caplog.records if record.name == "fastdiss_fairseq.safety"]
    assert line.endswith(
        "trained with other options until now: --noise-factor 4.0, now 3.0; --self-conditioning-prob 0.5, now 0.25"
    )


@pytest.mark.parametrize(
    "options, updates, moves",
    [
        ({}, 8, True),
        ({}, 6, False),
        ({"no_mans": True}, 8, False),
        ({"mans_start": 3.0}, 8, False),
        ({"mans_start": 3.0, "mans_scale": [2.0, 3.0], "mans_phase": [0.5]}, 8, True),
    ],
    ids=str,
)
def test_phases_that_move_with_the_number_of_updates_are_remarked_on(options, updates, moves):
    now = {"criterion": FastDiSSLossConfig(**options), "optimization": {"max_update": updates}}
    expected = [f"--max-update 6, now {updates}, of which MANS' phases are fractions"] if moves else []
    assert moved_phases({"criterion": {"max_update": 6}}, now) == expected
    assert moved_phases({}, now) == []


def test_a_new_training_from_weights_may_have_any_options(data, saved, tmp_path, caplog):
    weights = ["--finetune-from-model", saved / "checkpoint_last.pt", "--noise-factor", 3]
    done = in_process(training(data, tmp_path / "new", *weights, "--max-update", 1, "--disable-validation"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "other options" not in caplog.text


def test_damaged_ones_before_it_are_skipped_too(saved):
    first, *others = sorted(saved.glob("checkpoint_*_*.pt"), key=updates)
    for path in (*others, saved / "checkpoint_last.pt"):
        cut(path)
    shutil.copy(first, saved / "average.pt")  # no checkpoint of fairseq's training
    assert safety.newest_whole(str(saved / "checkpoint_last.pt")) == str(first)


def test_a_flipped_bit_is_damage(saved):
    path = saved / "checkpoint_last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "checksum" in safety.fault(path)
    assert safety.newest_whole(str(path)) != str(path)


def test_a_whole_last_checkpoint_and_none_at_all_are_left_to_fairseq(saved):
    for name in ("checkpoint_last.pt", "nowhere/checkpoint_last.pt", "checkpoint_last-rank-0.pt"):
        assert safety.newest_whole(str(saved / name)) == str(saved / name)


def half(source, destination):
    """A copy that is interrupted."""
    with open(source, "rb") as read, open(destination, "wb") as write:
        write.write(read.read()[:1000])
    raise KeyboardInterrupt


def test_an_interrupted_copy_leaves_the_old_file(saved, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", half)
    before = (saved / "checkpoint_last.pt").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        PathManager.copy(str(saved / "checkpoint_1_2.pt"), str(saved / "checkpoint_last.pt"), overwrite=True)
    assert (saved / "checkpoint_last.pt").read_bytes() == before


def test_a_failed_write_is_not_tried_again_behind_what_it_left(tmp_path, monkeypatch):
    """fairseq's second attempt begins in the middle of the file, which nothing could read."""
    path, write, attempts = tmp_path / "x.pt", torch.save, []

    def fail_once(obj, stream):
        attempts.append(stream.write(b"half"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_utils, "_torch_persistent_save", fail_once)
    with pytest.raises(FastDiSSError, match="cannot save .*No space left"):
        checkpoint_utils.torch_persistent_save({}, str(path))
    assert len(attempts) == 1 and not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert checkpoint_utils._torch_persistent_save is write


def test_only_faults_of_writing_are_reported_as_such(tmp_path, monkeypatch):
    """A fault of the device shows when its tensors are fetched for saving."""
    faults = {"CUDA error: device-side assert triggered": RuntimeError, "unexpected pos 64 vs 0": FastDiSSError}
    for message, expected in faults.items():

        def fail(obj, stream, message=message):
            raise RuntimeError(message)

        monkeypatch.setattr(checkpoint_utils, "_torch_persistent_save", fail)
        with pytest.raises(expected, match=message):
            checkpoint_utils.torch_persistent_save({}, str(tmp_path / "x.pt"))


def test_a_full_disk_ends_the_training_and_keeps_what_was_saved(data, saved, tmp_path):
    """The kernel refuses to let files grow as it does on a full disk, with another number."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    limit = len(before["checkpoint_last.pt"]) // 2
    running = process(
        training(data, saved, "--max-update", 8, "--disable-validation"),
        tmp_path / "log",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert running.wait(300) == 1
    line = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert line.startswith("fastdiss: error: cannot save") and "File too large" in line
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
