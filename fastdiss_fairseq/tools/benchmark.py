"""Time decoding and training, system against system on the same batches in turn.

    fastdiss-benchmark data-bin/multi30k_de_en --path runs/both/checkpoint_last.pt --ar ar.pt --cmlm cmlm.pt \\
        --output runs/speed

decodes batches of the test set with FastDiSS at several K (also on the reference path), FS-DFM, the autoregressive
transformer with beams 1 and 5, NAT, CMLM with 4 and 10 iterations and the Levenshtein transformer, as far as
their checkpoints are given, and takes training steps with each.  All take each batch in turn, so that a
drift of the machine's speed meets all alike; ratios are medians over batches.  Writes results.json, size by size,
table.md, with time as a line a + b K where there are several K, and a plot; absolute times belong to the machine, ratios
are what to compare.  ``--parts profile`` says where the time goes:
the share of each part of decoding (at the --steps and batch sizes given) and of a training step; ``--parts optimizer`` times
what follows the backward pass, ``--parts choice`` MBR alone, over the whole split; ``--parts agreement`` says in how many
sentences of the split the reference path and the variants give the fast path's very tokens.
"""

import argparse
import itertools
from argparse import Namespace
from pathlib import Path
from typing import Dict, Iterator, Sequence

from ..bundle import sha256
from ..compat import device
from ..errors import FastDiSSError, flag
from ..generation.config import DEPLOYMENTS
from ..loading import data_folder, weights_of
from . import speed_report
from .ablate import SYSTEMS
from .command import run_as_command
from .contenders import AGAINST, BASELINES, FSDFM, load
from .decoding_speed import REFERENCE_STEPS, agreement, choice, decoding, decoding_batches, step, translator
from .records import Records, circumstances, clock, device_name, sha256_of_all
from .stopwatch import DECODING, TRAINING, stopwatch
from .training_speed import Adam, optimizers, trainers, training, training_batches

KEY_FIELDS = ("benchmark", "system", "path", "steps", "candidates", "batch", "metric", "part")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder made by fairseq-preprocess")
    parser.add_argument("--path", required=True, help="FastDiSS checkpoint")
    parser.add_argument(f"--{FSDFM}", metavar="CHECKPOINT", help="checkpoint of an FS-DFM model")
    for name in BASELINES:
        parser.add_argument(f"--{name}", metavar="CHECKPOINT", help=f"checkpoint of the {name} baseline")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of one model, data and device for results, tables and a plot"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=["decoding", "step", "training"],
        help="what is measured (default: %(default)s); choice takes the most candidates and fewest steps given",
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[1, 2, 5, 10, 20],
        help=f"K (default: %(default)s); the reference path takes the one nearest {REFERENCE_STEPS}",
    )
    parser.add_argument(
        "--candidates", type=int, nargs="+", default=[1, 10], help="length beams (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 8, 64], help="sentences a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=4000, help="of full token batches, and in training (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=10, help="batches of each size; of choice, repetitions (default: %(default)s)"
    )
    parser.add_argument("--subset", default="test", help="split to decode (default: %(default)s)")
    parser.add_argument(
        "--against", default=AGAINST, help="the contender that ratios are taken against (default: %(default)s)"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=DEPLOYMENTS, default=[], help="also decode with --decoding-VARIANT"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser


# Profile


def profile(args) -> Iterator[dict]:
    """Records of what share of decoding and of a training step each part takes."""
    model, _, task = load(args.path, args)
    batches = decoding_batches(args)
    for steps, size in itertools.product(args.steps, batches):
        facts = {"path": "fast", "steps": steps, "candidates": 1, "batch": size}
        run = translator(task, model, Namespace(decoding_steps=steps))
        yield from shares(f"decoding, K = {steps}", run, DECODING, batches[size], facts, args)
    found = training_batches(args)
    for contender in trainers(args):
        if contender.name in SYSTEMS:
            facts = {"path": "fast", "steps": None, "candidates": None, "batch": "tokens"}
            parts = {**TRAINING, "backward": (Adam, "backward"), "optimizer": (Adam, "step")}
            yield from shares(f"training, {contender.name}", contender.run, parts, found, facts, args)


def shares(what: str, run, parts, batches: Sequence[dict], facts: dict, args) -> Iterator[dict]:
    """A record for each part, and one for the rest, with its milliseconds a batch and its share."""
    run(batches[0])
    with stopwatch(parts, lambda: clock(args)) as seconds:
        started = clock(args)
        for batch in batches:
            run(batch)
        total = clock(args) - started
    seconds["rest"] = total - sum(seconds.values())
    for name, value in seconds.most_common():
        milliseconds = {
            "metric": "ms",
            "value": round(1000 * value / len(batches), 3),
            "share": round(value / total, 3),
        }
        yield {
            "benchmark": "profile",
            "system": what,
            "part": name,
            **facts,
            **milliseconds,
            **circumstances("fastdiss-benchmark", device(args)),
        }


PARTS = {
    "decoding": decoding,
    "step": step,
    "choice": choice,
    "agreement": agreement,
    "training": training,
    "optimizer": optimizers,
    "profile": profile,
}


def settings(args) -> Dict[str, str]:
    """What all figures of a folder are of, so that no table mixes them."""
    data = data_folder(args.data).glob(f"{args.subset}.*")
    return {
        "checkpoint_sha256": sha256(weights_of(args.path)),
        "data_sha256": sha256_of_all(data),
        "device": device_name(device(args)),
    }


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    for name in ("steps", "candidates", "batch_sizes", "max_tokens", "rounds"):
        value = getattr(args, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            raise FastDiSSError(f"{flag(name)} must be at least 1")
    args.output.mkdir(parents=True, exist_ok=True)
    records = Records(args.output / "results.json", KEY_FIELDS, "batch")
    own = settings(args)
    differing = sorted({name for record in records for name in own if record.get(name, own[name]) != own[name]})
    if differing:
        raise FastDiSSError(f"{args.output} holds other work: {', '.join(differing)} differ; take another folder")
    for part in args.parts:
        for found in PARTS[part](args):
            records.add({**found, **own})
    speed_report.write(list(records), args.output)
    print((args.output / "table.md").read_text(encoding="utf-8"))


def cli_main():
    run_as_command(main)
