"""What must be equal: a resumed training and one that never stopped, two processes and one, shards and the whole."""

import os
import shlex
import socket
import subprocess
import sys

import pytest
import torch
from commands import in_process
from conftest import ENVIRONMENT, MODEL, PLUGIN, TRAINING, lines, train

#: What differs from run to run: clocks, and the folder in the options.
CLOCKS = {"metrics", "previous_training_time", "cfg"}


def load(path):
    import fastdiss_fairseq  # noqa: F401  (allows fairseq's classes)

    return torch.load(path, map_location="cpu")


def differences(one, other, where="checkpoint"):
    """Where two checkpoints differ, clocks apart: a list of names."""
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [
            name for key in one if key not in CLOCKS for name in differences(one[key], other[key], f"{where}.{key}")
        ]
    if isinstance(one, (list, tuple)):
        pairs = list(zip(one, other)) if len(one) == len(other) else [(0, 1)]
        return [name for i, (a, b) in enumerate(pairs) for name in differences(a, b, f"{where}[{i}]")]
    same = torch.equal(one, other) if torch.is_tensor(one) else one == other
    return [] if same else [where]


EVERYTHING = (
    "--save-interval-updates 5 --mans-start 2 --mans-scale 2,3,4 --mans-phase 4,7 --store-ema --ema-decay 0.6 "
    "--update-freq 2 --lr-scheduler inverse_sqrt --warmup-updates 4 --attention-dropout 0.1"
).split()


@pytest.mark.parametrize("stop", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_resuming_equals_never_stopping(data, tmp_path, stop):
    """Weights, optimizer, scheduler, moving average, MANS' phases, order of batches and every random number; stopped
    within an epoch or at an end of one."""
    train(data, tmp_path / "whole", *EVERYTHING, "--max-update", 10)
    train(data, tmp_path / "parts", *EVERYTHING, "--max-update", stop)
    train(data, tmp_path / "parts", *EVERYTHING, "--max-update", 10)
    whole, parts = (load(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "parts"))
    assert whole["optimizer_history"][-1]["num_updates"] == 10
    assert whole["last_optimizer_state"]["state"] and "ema" in whole["extra_state"]
    for state in (whole, parts):
        state["optimizer_history"] = state["optimizer_history"][-1:]  # fairseq adds an entry at each start,
        state["optimizer_history"][0]["lr_scheduler_state"].pop(
            "best"
        )  # and tells no scheduler of the epoch it ends in
    assert not differences(whole, parts)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


#: What every process of a training without a GPU is told, and no launcher says.
GLOO = ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]


def by_hand(count, line, folder):
    """One command a process, as docs/reliability.md has it."""
    where = f"tcp://localhost:{free_port()}"
    joined = ["--distributed-world-size", count, "--distributed-init-method", where, "--distributed-no-spawn"]
    return [([*line, *joined, "--distributed-rank", rank], {}) for rank in range(count)]


def by_torchrun(count, line, folder):
    """torchrun starts the processes; fairseq's own reading of its variables needs a GPU, so they are passed on."""
    told = "--distributed-world-size $WORLD_SIZE --distributed-rank $RANK --distributed-init-method env://"
    script = f"{shlex.join(map(str, line))} --distributed-no-spawn {told}"
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", count, "--master_port", free_port()]
    return [([*start, "--no-python", "bash", "-c", script], {})]


def by_slurm(count, line, folder):
    """What srun says on a node with some processes, and a stand-in for scontrol: fairseq finds host and rank by
    them.  The local id, which names a GPU, stays 0."""
    (folder / "bin").mkdir()
    scontrol = folder / "bin" / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node1" ] && echo localhost\n')
    scontrol.chmod(0o755)
    job = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "SLURM_STEP_NODELIST": "node1",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS": str(count),
    }
    joined = ["--distributed-world-size", count, "--distributed-port", free_port()]
    return [([*line, *joined], {**job, "SLURM_PROCID": str(k), "SLURM_LOCALID": "0"}) for k in range(count)]


def in_processes(launcher, count, line, folder):
    """Run a training in processes that fairseq joins over gloo."""
    name, *arguments = map(str, line)
    start = [sys.executable, "-m", f"fairseq_cli.{name}", *arguments, "--user-dir", PLUGIN, *GLOO]
    started = [
        subprocess.Popen(
            [str(word) for word in words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**ENVIRONMENT, **more},
        )
        for words, more in launcher(count, start, folder)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert all(process.returncode == 0 for process in started), outputs[0][-3000:]


def loss(path):
    """The exact losses a token that the training had logged when it saved."""
    meters = {key: state for _, key, _, state in load(path)["extra_state"]["metrics"]["train"]}
    names = ("loss", "diffusion_loss", "rounding_loss", "length_loss", "t", "mans_t")
    return {name: float(meters[name]["sum"] / meters[name]["count"]) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [by_hand, by_torchrun, by_slurm])
def test_two_processes_equal_one_with_batches_of_both(data, tmp_path, launcher):
    """An epoch of 13 sentences: one batch, or one of 7 and one of 6.  SCP and MANS are on, dropout is off, since
    processes draw their own."""
    common = ["--task", "fastdiss", *MODEL, "--criterion", "fastdiss_loss", *TRAINING, "--dropout", 0]
    common += ["--train-subset", "valid", "--disable-validation", "--save-interval", 1, "--max-epoch", 4]
    common += ["--mans-start", 0, "--max-update", 100]
    common.remove("--no-epoch-checkpoints")
    line = lambda folder, size: ["train", data, *common, "--save-dir", tmp_path / folder, "--batch-size", size]
    in_processes(launcher, 2, line("two", 7), tmp_path)
    assert in_process(line("one", 13)).returncode == 0
    for epoch in (1, 2, 3, 4):
        one, two = (loss(tmp_path / folder / f"checkpoint{epoch}.pt") for folder in ("one", "two"))
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6), epoch
    assert load(tmp_path / "two" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 4


def decoded(data, checkpoint, *options):
    """{sentence: hypothesis} of the test set, in this process."""
    done = in_process(["generate", data, "--task", "fastdiss", "--cpu", "--path", checkpoint, *options])
    assert done.returncode == 0, done.stderr[-2000:]
    return {key: rest[0].split("\t")[1] for key, rest in lines(done.stdout, "H").items()}


@pytest.mark.parametrize("count", [2, 12])
def test_shards_are_disjoint_balanced_and_together_the_whole(data, checkpoint, count):
    """Ten sentences: with twelve shards two are empty, and end well."""
    options = ["--decoding-steps", 2, "--noise-beam", 2]
    shards = [decoded(data, checkpoint, *options, "--num-shards", count, "--shard-id", k) for k in range(count)]
    sizes = [len(shard) for shard in shards]
    assert sum(sizes) == 10 and max(sizes) - min(sizes) <= 1
    assert {key: text for shard in shards for key, text in shard.items()} == decoded(data, checkpoint, *options)


def test_interactive_answers_every_line_whatever_the_shards(data, checkpoint):
    line = ["interactive", data, "--task", "fastdiss", "--cpu", "-s", "src", "-t", "tgt", "--path", checkpoint]
    done = in_process([*line, "--num-shards", 2, "--shard-id", 1], b"s1\ns2\ns3\n")
    assert len(lines(done.stdout, "H")) == 3
