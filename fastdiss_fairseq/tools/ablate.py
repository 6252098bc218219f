"""Train the four systems (standard, +SCP, +MANS, both) alike and sweep over them.

    fastdiss-ablate data-bin/multi30k_de_en --output runs/ablation --jobs 2 \\
        --train "--arch fastdiss_tiny --optimizer adam --lr 2e-3 --max-tokens 4000 --max-update 2400 ..." \\
        --sweep "--reference data-bin/multi30k_de_en/raw/test.en --steps 1 2 5 20"

Systems differ in --no-scp and --no-mans alone; ``--variant "uniform=--scp-rule uniform"`` adds one that
differs from both in the options given.  Checkpoints and logs go to OUTPUT/SYSTEM (of other
seeds than 1 to OUTPUT/SYSTEM-seedN), the sweep's results to OUTPUT/sweep.  The same command goes on with what was
interrupted, and repeats nothing that is finished.
"""

import argparse
import contextlib
import io
import os
import queue
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

import torch

from fairseq.options import get_training_parser, parse_args_and_arch

from ..errors import FastDiSSError
from ..loading import data_folder
from . import sweep
from .command import PLUGIN, run_as_command
from .records import claim, sha256_of_training

#: What switches a system's parts off.
SYSTEMS = {
    "standard": ("--no-scp", "--no-mans"),
    "scp": ("--no-mans",),
    "mans": ("--no-scp",),
    "scp+mans": (),
}
MANAGED = ("--save-dir", "--seed", "--user-dir")


class Training(NamedTuple):
    """One training run."""

    system: str
    options: Sequence[str]
    seed: int
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint_last.pt"

    @property
    def finished(self) -> Path:
        return self.folder / "finished"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder made by fairseq-preprocess")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints, logs and results")
    parser.add_argument(
        "--train", required=True, metavar="OPTIONS", help="options of fairseq-train, the same for all systems"
    )
    parser.add_argument("--sweep", metavar="OPTIONS", help="options of fastdiss-sweep (default: train only)")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=OPTIONS", help="a further system")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time; several GPUs are taken in turn")
    return parser


def systems(args) -> Dict[str, Sequence[str]]:
    """The options of each system to train.

    Raises:
        FastDiSSError: a variant without a name of its own.
    """
    chosen: Dict[str, Sequence[str]] = {name: SYSTEMS[name] for name in args.systems}
    if len(chosen) < len(args.systems) or len(set(args.seeds)) < len(args.seeds):
        raise FastDiSSError("--systems and --seeds take each once")
    for variant in args.variant:
        name, equals, options = variant.partition("=")
        if not equals or not name or "/" in name or name in SYSTEMS or name in chosen:
            raise FastDiSSError(f"--variant takes NAME=OPTIONS with a new name, not '{variant}'")
        chosen[name] = words_of("--variant", options, MANAGED)
    return chosen


def words_of(flag: str, options: str, managed: Sequence[str] = ()) -> List[str]:
    """The words of an option that holds options.

    Raises:
        FastDiSSError: quotation marks without an end, or an option that is ``managed`` by this command.
    """
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise FastDiSSError(f"{flag} {options}: {error}") from None
    for word in words:
        if word.split("=")[0] in managed:
            raise FastDiSSError(f"{flag} must leave {word} to this command")
    return words


def trainings(args) -> List[Training]:
    """All runs, the systems of the first seed first."""
    suffix = lambda seed: f"-seed{seed}" if seed != 1 else ""
    return [
        Training(name, options, seed, args.output / f"{name}{suffix(seed)}")
        for seed in args.seeds
        for name, options in systems(args).items()
    ]


def command(args, training: Training) -> List[str]:
    """fairseq-train for one run: of options that occur twice the last counts, so the user's override what is the same
    always, and a system's the user's."""
    own = ["--user-dir", PLUGIN, "--save-dir", str(training.folder), "--seed", str(training.seed)]
    always = ["--task", "fastdiss", "--criterion", "fastdiss_loss", "--log-format", "simple", "--no-epoch-checkpoints"]
    executable = [sys.executable, "-m", "fairseq_cli.train", str(args.data)]
    return [*executable, *own, *always, *words_of("--train", args.train), *training.options]


def environments(jobs: int) -> "queue.Queue[dict]":
    """What ``jobs`` trainings at a time run in: where this process sees several GPUs one of them each, in turn; on a CPU
    waiting threads that do not spin."""
    variables, count, free = {"OMP_WAIT_POLICY": "passive", **os.environ}, torch.cuda.device_count(), queue.Queue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    for number in range(jobs):
        own = {"CUDA_VISIBLE_DEVICES": visible[number % count].strip()} if count > 1 else {}
        free.put({**variables, **own})
    return free


def train(args, training: Training, environment: dict) -> Training:
    """Run or resume one training; its log goes to ``train.log`` in its folder, its options to ``options.json``.

    Raises:
        FastDiSSError: the folder holds another training, or fairseq-train failed.
    """
    training.folder.mkdir(parents=True, exist_ok=True)
    options = training.folder / "options.json"
    if options.exists() and not (training.checkpoint.exists() or training.finished.exists()):
        options.unlink()  # of a training that failed before it saved anything
    claim(options, settings(args, training))
    if training.finished.exists():
        return training
    log = training.folder / "train.log"
    with open(log, "ab") as stream:
        line = command(args, training)
        done = subprocess.run(line, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    if done.returncode != 0:
        raise FastDiSSError(f"training of {training.folder.name} failed (exit code {done.returncode}): see {log}")
    if not training.checkpoint.exists():
        raise FastDiSSError(f"training of {training.folder.name} left no {training.checkpoint.name}: see {log}")
    training.finished.touch()
    return training


def settings(args, training: Training) -> dict:
    """What a training folder is of."""
    options = [*words_of("--train", args.train), *training.options]
    return {"data_sha256": sha256_of_training(args.data), "seed": training.seed, "options": options}


def train_all(args, runs: List[Training]) -> None:
    """``args.jobs`` at a time; after a failure, or when interrupted, no new ones are started."""
    free = environments(args.jobs)

    def train_in_a_free_one(run: Training) -> Training:
        environment = free.get()
        try:
            return train(args, run, environment)
        finally:
            free.put(environment)

    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = [pool.submit(train_in_a_free_one, run) for run in runs]
        try:
            for done in as_completed(waiting):
                print(f"trained: {done.result().folder.name}", flush=True)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise


def check(args) -> None:
    """Raise FastDiSSError where the options cannot work."""
    if args.jobs < 1:
        raise FastDiSSError(f"--jobs must be at least 1, not {args.jobs}")
    words_of("--train", args.train, (*MANAGED, "--no-scp", "--no-mans"))


def check_trainings(args, runs: List[Training]) -> None:
    """Raise FastDiSSError, before any has begun, where fairseq-train would not understand the options of one."""
    for run in runs:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parse_args_and_arch(get_training_parser(), command(args, run)[3:])
        except SystemExit:
            why = (said.getvalue().splitlines() or ["no options of a training"])[-1].split("error: ", 1)[-1]
            raise FastDiSSError(f"--train for {run.folder.name}: {why}") from None


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    check(args)
    data_folder(args.data)
    runs = trainings(args)
    check_trainings(args, runs)
    paths, names = [str(run.checkpoint) for run in runs], [run.system for run in runs]
    decoding = [str(args.data), "--path", *paths, "--systems", *names, "--output", str(args.output / "sweep")]
    if args.sweep is not None:
        decoding += words_of("--sweep", args.sweep)
        asked = sweep.get_parser().parse_args(decoding)
        sweep.check(asked)
        sweep.check_baseline(asked, [sweep.called(name, asked) for name in names])
    train_all(args, runs)
    if args.sweep is not None:
        sweep.main(decoding)


def cli_main():
    run_as_command(main, goes_on=True)
