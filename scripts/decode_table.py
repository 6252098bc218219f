#!/usr/bin/env python3
"""Decode the test set with several step counts and print one table and ten sample outputs.

    decode_table.py DATA CHECKPOINT --reference DATA/raw/test.en --steps 1 2 5 10 20 --output FOLDER

Writes FOLDER/generate-K.txt, FOLDER/table.md and FOLDER/results.json.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import score

PLUGIN = Path(__file__).resolve().parent.parent / "fastdiss_fairseq"
SPEED = re.compile(r"Translated ([\d,]+) sentences .* in ([\d.]+)s \(([\d.]+) sentences/s")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--reference", type=Path, required=True, help="raw reference, one sentence a line")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--subset", default="test")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="passed to fairseq-generate")
    return parser.parse_args()


def generate(args, steps):
    """Run fairseq-generate; returns its command, seconds and sentences a second."""
    source, target = languages(args.data)
    command = [
        "fairseq-generate", str(args.data), "--user-dir", str(PLUGIN), "--task", "fastdiss", "-s", source,
        "-t", target, "--path", str(args.checkpoint), "--gen-subset", args.subset, "--decoding-steps", str(steps),
        "--batch-size", "128", "--post-process", "subword_nmt", *args.options,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"decode_table.py: fairseq-generate failed: {done.stderr.strip().splitlines()[-1]}")
    (args.output / f"generate-{steps}.txt").write_text(done.stdout, encoding="utf-8")
    _, seconds, rate = SPEED.search(done.stdout + done.stderr).groups()
    return command, float(seconds), float(rate)


def languages(data):
    """The source and target language of a data folder, from the names of its files."""
    found = next(data.glob("*.*-*.*.idx"), None)
    if found is None:
        sys.exit(f"decode_table.py: no binarised data in {data}")
    return found.name.split(".")[1].split("-")


def measure(args, steps):
    command, seconds, rate = generate(args, steps)
    hypotheses = score.read_hypotheses(args.output / f"generate-{steps}.txt")
    hypotheses = score.detokenise(hypotheses, "en")
    scores = score.score(hypotheses, score.read_lines(args.reference))
    record = {
        "benchmark": args.data.resolve().name, "split": args.subset, "updates": updates(args.checkpoint),
        "options": " ".join(args.options), "steps": steps, "metric": "BLEU", "value": scores["bleu"],
        "signature": scores["bleu_signature"], "chrf": scores["chrf"], "seconds": seconds,
        "sentences_per_second": rate, "device": device(), "versions": versions(),
        "command": " ".join(Path(word).name if "/" in word else word for word in command),
    }
    return record, hypotheses


def updates(checkpoint):
    """How many updates the checkpoint was trained for."""
    sys.path.insert(0, str(PLUGIN.parent))
    import fastdiss_fairseq  # noqa: F401  (lets torch load fairseq's classes)

    return torch.load(checkpoint, map_location="cpu")["optimizer_history"][-1]["num_updates"]


def versions():
    names = ("torch", "fairseq", "ve-fairseq", "sacrebleu")
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {name: installed[name] for name in names if name in installed}


def device():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"


def table(records):
    rows = ["| K | BLEU | chrF | seconds | sentences/s |", "| ---: | ---: | ---: | ---: | ---: |"]
    for r in records:
        rows.append(
            f"| {r['steps']} | {r['value']:.2f} | {r['chrf']:.1f} | {r['seconds']:.1f} "
            f"| {r['sentences_per_second']:.0f} |"
        )
    return "\n".join([*rows, "", f"BLEU: sacreBLEU {records[0]['signature']}; {records[0]['device']}"])


def samples(args, decoded):
    """The first sentences of the test set: reference and output for the fewest and the most steps."""
    references = score.read_lines(args.reference)
    for number in range(min(args.samples, len(references))):
        print(f"\n{number + 1:2}. reference: {references[number]}")
        for steps, hypotheses in decoded.items():
            print(f"    K = {steps:<2}:    {hypotheses[number]}")


def main():
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    records, decoded = [], {}
    for steps in args.steps:
        record, decoded[steps] = measure(args, steps)
        records.append(record)
        print(f"K = {steps}: BLEU {record['value']:.2f} in {record['seconds']:.1f} s", flush=True)
    (args.output / "results.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (args.output / "table.md").write_text(table(records) + "\n", encoding="utf-8")
    print("\n" + table(records))
    few = [args.steps[0], args.steps[len(args.steps) // 2]]
    samples(args, {steps: decoded[steps] for steps in dict.fromkeys(few)})


if __name__ == "__main__":
    try:
        main()
    except score.ScoringError as error:
        sys.exit(f"decode_table.py: {error}")
