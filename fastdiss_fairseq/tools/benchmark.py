"""Time decoding and training, system against system on the same batches in turn.

    fastdiss-benchmark data-bin/multi30k_de_en --path runs/both/checkpoint_last.pt --ar ar.pt --cmlm cmlm.pt \\
        --output runs/speed

decodes batches of the test set with FastDiSS at several K (also on the reference path), FS-DFM, the autoregressive
transformer with beams 1 and 5, NAT, CMLM with 4 and 10 iterations and the Levenshtein transformer, as far as
their checkpoints are given, and takes training steps with each.  All take each batch in turn, so that a
drift of the machine's speed meets all alike; ratios are medians over batches.  Writes results.json, size by size, and
table.md; absolute times belong to the machine, ratios are what to compare.  ``--parts profile`` says where the time goes:
the share of each part of decoding (at the --steps and batch sizes given) and of a training step; ``--parts optimizer`` times
what follows the backward pass, ``--parts choice`` MBR alone, over the whole split.
"""

import argparse
import itertools
from argparse import Namespace
from pathlib import Path
from typing import Iterator, Sequence

from ..compat import device
from ..errors import FastDiSSError
from ..generation.config import DEPLOYMENTS
from .ablate import SYSTEMS
from .command import run_as_command
from .contenders import BASELINES, FSDFM, Contender, load
from .decoding_speed import choice, decoding, decoding_batches, step, translator
from .records import Records, circumstances, clock
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
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["decoding", "step", "training"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 10], help="length beams")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64], help="sentences a batch")
    parser.add_argument("--max-tokens", type=int, default=4000, help="of full token batches, and in training")
    parser.add_argument("--rounds", type=int, default=10, help="batches of each size")
    parser.add_argument("--subset", default="test")
    parser.add_argument("--against", default="ar, beam 5", help="the contender that ratios are taken against")
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


# Tables


def table(records: Sequence[dict]) -> str:
    """A Markdown table for each benchmark and batch size."""
    parts = []
    for (benchmark, batch), group in itertools.groupby(records, lambda r: (r["benchmark"], r["batch"])):
        group = list(group)
        if benchmark == "profile":
            parts.append(profile_table(batch, group))
            continue
        rate = "target_tokens_per_second" if benchmark == "training" else "sentences_per_second"
        against = next((r["against"] for r in group if "against" in r), None)
        heads = ["system", "median ms", "p95 ms", "per second", *([f"times as fast as {against}"] if against else [])]
        counted = ["operators"] if benchmark == "training" else []
        lines = [
            f"**{benchmark}, batch: {batch}**",
            "",
            f"| {' | '.join([*heads, *counted])} |",
            "| ---" + " | ---:" * (len([*heads, *counted]) - 1) + " |",
        ]
        for r in group:
            cells = [Contender(r, None).name, f"{r['value']:.1f}", f"{r['p95']:.1f}", str(r.get(rate, ""))]
            others = [*(["speed_ratio"] if against else []), *counted]
            lines.append(f"| {' | '.join([*cells, *(str(r.get(name, '')) for name in others)])} |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, records[0]["device"]]) + "\n"


def profile_table(batch, records: Sequence[dict]) -> str:
    lines = [f"**profile, batch: {batch}**", "", "| | part | ms | share |", "| --- | --- | ---: | ---: |"]
    lines += [f"| {r['system']} | {r['part']} | {r['value']:.1f} | {100 * r['share']:.0f} % |" for r in records]
    return "\n".join(lines)


PARTS = {
    "decoding": decoding,
    "step": step,
    "choice": choice,
    "training": training,
    "optimizer": optimizers,
    "profile": profile,
}


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    if min(args.rounds, *args.batch_sizes) < 1:
        raise FastDiSSError("--rounds and --batch-sizes must be at least 1")
    args.output.mkdir(parents=True, exist_ok=True)
    records = Records(args.output / "results.json", KEY_FIELDS)
    for part in args.parts:
        for found in PARTS[part](args):
            records.add(found)
    text = table(list(records))
    (args.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


def cli_main():
    run_as_command(main)
