#!/usr/bin/env python3
"""Plot what fairseq-train logged, ours or a stock model's: training curves, and SCP and MANS by noise level.

    plot_training.py runs/ablation/*/train.log --output FOLDER [--split train|valid]

reads fairseq-train's logs (--log-format simple or json) and writes
FOLDER/training.png, .svg and .json: losses, accuracies, validation BLEU and what SCP and MANS do, over updates, one panel
a quantity, one colour a run; points are measured on the validation set.  Of each run that was trained with --log-noise-levels also
FOLDER/noise_levels_RUN.png and .svg, accuracy, losses and MANS by noise level, and FOLDER/noise_levels.json with their numbers.
"""

import argparse
import json
import math
import re
import sys
from importlib.util import find_spec
from pathlib import Path

#: What has a panel of training curves, where a log has it.
CURVES = {
    "loss": "loss",
    "nll_loss": "negative log-likelihood, bits",
    "diffusion_loss": "diffusion loss",
    "rounding_loss": "rounding loss",
    "flow_loss": "flow loss",
    "teacher_loss": "loss to the teacher",
    "length_loss": "length loss",
    "rounding_accuracy": "rounding accuracy, %",
    "accuracy": "accuracy, %",
    "bleu": "BLEU",
    "mans_moved": "tokens that MANS moved, %",
    "scp_gap": "SCP: mean t' - t",
    "lr": "learning rate",
}
BY_NOISE_LEVEL = {
    "accuracy": "rounding accuracy, %",
    "rounding_loss": "rounding loss",
    "diffusion_loss": "diffusion loss",
    "share": "tokens trained there (t_i), %",
    "moved": "tokens drawn there that MANS moved, %",
}
TAGS = {"train": "train_inner", "valid": "valid"}
FIELD = re.compile(r'(\w+)"?[=:] ?"?([-+.\de]+|nan|inf)|(\w+) ([-+.\de]+)(?= \||$)')


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--split", choices=TAGS, default="train", help="whose noise levels to show")
    parser.add_argument("--moments", type=int, default=6, help="how many moments of training to show by noise level")
    return parser.parse_args()


def read(path, split):
    """{update: {quantity: value}} of a log; what was trained again after a restart counts once, the last time."""
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if f"| {TAGS[split]} |" not in line and f"[{TAGS[split]}][INFO]" not in line:  # the latter by hydra
            continue
        fields = {name or other: float(value or its) for name, value, other, its in FIELD.findall(line)}
        values = {name[len(split) + 1 :] if name.startswith(f"{split}_") else name: v for name, v in fields.items()}
        if "num_updates" in values:
            found[int(values["num_updates"])] = values
    return dict(sorted(found.items()))


def by_noise_level(moments):
    """[(update, {quantity: [a value a bin]})] of those moments that have them."""
    found = []
    for update, values in moments.items():
        bins = range(sum(f"accuracy_t{k}" in values for k in range(100)))
        if bins:
            found.append((update, {q: [values[f"{q}_t{k}"] for k in bins] for q in BY_NOISE_LEVEL}))
    return found


def chosen(moments, count):
    """So many of the moments, evenly spread, the last included."""
    if len(moments) <= count:
        return moments
    return [moments[round((i + 1) * len(moments) / count) - 1] for i in range(count)]


def curves(runs):
    """{quantity: {run: {split: [(update, value)]}}} of what the logs have, numbers alone."""
    found = {}
    for quantity in CURVES:
        for run, splits in runs.items():
            for split, moments in splits.items():
                points = [
                    (update, v[quantity]) for update, v in moments.items() if math.isfinite(v.get(quantity, math.nan))
                ]
                if points and not (split == "valid" and quantity == "lr"):
                    found.setdefault(quantity, {}).setdefault(run, {})[split] = points
    return found


def draw_curves(found, runs, output):
    from matplotlib import pyplot

    columns = min(4, len(found))
    rows = math.ceil(len(found) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False)
    colors = {run: f"C{number % 10}" for number, run in enumerate(runs)}
    for axis, (quantity, of_runs) in zip(axes.flat, found.items()):
        for run, splits in of_runs.items():
            for split, points in splits.items():
                look = {"marker": "o", "markersize": 4, "linestyle": "--"} if split == "valid" else {"linewidth": 1}
                axis.plot(*zip(*points), color=colors[run], **look)
        axis.set(xlabel="updates", title=CURVES[quantity])
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(found) :]:
        axis.set_visible(False)
    handles = [pyplot.Line2D([], [], color=color, label=run) for run, color in colors.items()]
    figure.legend(handles=handles, loc="upper center", ncol=min(len(handles), 6), fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.1 / rows))
    save(figure, output / "training")


def draw_noise_levels(run, moments, output):
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(BY_NOISE_LEVEL), figsize=(4 * len(BY_NOISE_LEVEL), 3.6))
    for number, (update, values) in enumerate(moments):
        color = pyplot.cm.viridis(number / max(len(moments) - 1, 1))
        for axis, quantity in zip(axes, BY_NOISE_LEVEL):
            bins = len(values[quantity])
            middles = [(k + 0.5) / bins for k in range(bins)]
            axis.plot(middles, values[quantity], marker="o", markersize=3, color=color, label=f"update {update}")
    for axis, title in zip(axes, BY_NOISE_LEVEL.values()):
        axis.set(xlabel="noise level t", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.suptitle(run)
    figure.tight_layout()
    save(figure, output / f"noise_levels_{run}")


def save(figure, path):
    from matplotlib import pyplot

    for kind in ("png", "svg"):
        figure.savefig(path.with_name(f"{path.name}.{kind}"), dpi=120)
    pyplot.close(figure)


def write(path, numbers):
    path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def main():
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    runs = {}
    for path in args.logs:
        if not path.is_file():
            sys.exit(f"plot_training.py: no log {path}")
        run = path.parent.name if path.stem == "train" else path.stem  # as our scripts lay them out
        if run in runs:
            sys.exit(f"plot_training.py: two logs are of a run {run}: plot them one by one, or rename a folder")
        runs[run] = {split: read(path, split) for split in TAGS}
        if not curves({run: runs[run]}):
            sys.exit(f"plot_training.py: {path} is no log of fairseq-train --log-format simple or json")
    found = curves(runs)
    write(args.output / "training.json", found)
    levels = {run: by_noise_level(splits[args.split]) for run, splits in runs.items()}
    if any(levels.values()):
        numbers = {run: [{"updates": update, **values} for update, values in of_run] for run, of_run in levels.items()}
        write(args.output / "noise_levels.json", numbers)
    if find_spec("matplotlib") is None:
        sys.exit("plot_training.py: only the numbers are written: plots need matplotlib (pip install matplotlib)")
    draw_curves(found, runs, args.output)
    for run, moments in levels.items():
        if moments:
            draw_noise_levels(run, chosen(moments, args.moments), args.output)


if __name__ == "__main__":
    main()
