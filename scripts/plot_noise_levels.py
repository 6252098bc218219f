#!/usr/bin/env python3
"""Plot what training with --log-noise-levels logged: accuracy, losses and MANS by noise level.

    plot_noise_levels.py runs/ablation/*/train.log --output FOLDER [--split train]

reads fairseq-train's logs (--log-format simple or json) and writes for each
FOLDER/noise_levels_RUN.png and .svg, and FOLDER/noise_levels.json with the numbers behind them.
"""

import argparse
import json
import re
import sys
from pathlib import Path

QUANTITIES = {
    "accuracy": "rounding accuracy, %",
    "rounding_loss": "rounding loss",
    "diffusion_loss": "diffusion loss",
    "share": "tokens trained there (t_i), %",
    "moved": "tokens drawn there that MANS moved, %",
}
TAGS = {"train": "train_inner", "valid": "valid"}
FIELD = re.compile(r'(\w+)"?[=:] ?"?([-+.\de]+)|(\w+) ([-+.\de]+)(?= \||$)')


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--split", choices=TAGS, default="train")
    parser.add_argument("--curves", type=int, default=6, help="how many moments of training to show")
    return parser.parse_args()


def read(path, split):
    """[(update, {quantity: [a value a bin]})] of a log."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if TAGS[split] not in line or "accuracy_t0" not in line:
            continue
        values = {}
        for name, value, other, its in FIELD.findall(line):
            values[name or other] = float(value or its)
        prefix = f"{split}_" if f"{split}_num_updates" in values else ""
        update = int(values[f"{prefix}num_updates"])
        bins = range(sum(f"{prefix}accuracy_t{k}" in values for k in range(100)))
        found.append((update, {q: [values[f"{prefix}{q}_t{k}"] for k in bins] for q in QUANTITIES}))
    return found


def chosen(moments, count):
    """So many of the moments, evenly spread, the last included."""
    if len(moments) <= count:
        return moments
    return [moments[round((i + 1) * len(moments) / count) - 1] for i in range(count)]


def draw(run, moments, output):
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(QUANTITIES), figsize=(4 * len(QUANTITIES), 3.6))
    for number, (update, values) in enumerate(moments):
        color = pyplot.cm.viridis(number / max(len(moments) - 1, 1))
        for axis, quantity in zip(axes, QUANTITIES):
            bins = len(values[quantity])
            middles = [(k + 0.5) / bins for k in range(bins)]
            axis.plot(middles, values[quantity], marker="o", markersize=3, color=color, label=f"update {update}")
    for axis, title in zip(axes, QUANTITIES.values()):
        axis.set(xlabel="noise level t", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.suptitle(run)
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(output / f"noise_levels_{run}.{kind}", dpi=120)
    pyplot.close(figure)


def main():
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    numbers = {}
    for path in args.logs:
        if not path.is_file():
            sys.exit(f"plot_noise_levels.py: no log {path}")
        run, moments = path.parent.name or path.stem, read(path, args.split)
        if not moments:
            sys.exit(f"plot_noise_levels.py: nothing by noise level in {path}: train with --log-noise-levels")
        draw(run, chosen(moments, args.curves), args.output)
        numbers[run] = [{"updates": update, **values} for update, values in moments]
    (args.output / "noise_levels.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
