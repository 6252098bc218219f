"""Tables and a plot of a benchmark's records."""

import itertools
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import numpy as np

from .contenders import Contender
from .rows import table

#: What tells lines of time by K apart.
LINE_FIELDS = ("system", "path", "candidates", "batch")


def write(records: Sequence[dict], folder: Path) -> None:
    """Write ``table.md``, and ``latency_by_steps`` as PNG and SVG where decoding was timed."""
    groups = itertools.groupby(records, lambda r: (r["benchmark"], r["batch"]))
    parts = [table_of(benchmark, batch, list(group)) for (benchmark, batch), group in groups]
    parts += [fits_table(records), records[0]["device"]]
    (folder / "table.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    plot([record for record in records if record["benchmark"] == "decoding"], folder / "latency_by_steps")


def table_of(benchmark: str, batch, records: Sequence[dict]) -> str:
    """The table of a benchmark and batch size."""
    title = f"**{benchmark}, batch: {batch}**\n\n"
    if benchmark == "profile":
        lines = [[r["system"], r["part"], f"{r['value']:.1f}", f"{100 * r['share']:.0f} %"] for r in records]
        return title + table(["", "part", "ms", "share"], 2, lines)
    if benchmark == "agreement":
        lines = [[Contender(r, None).name, f"{r['value']:.1f}"] for r in records]
        return title + table(["system", "sentences as the fast path's, %"], 1, lines)
    rate = "target_tokens_per_second" if benchmark == "training" else "sentences_per_second"
    against = next((r["against"] for r in records if "against" in r), None)
    columns = {"p95 ms": "p95", "per second": rate, f"times as fast as {against}": "speed_ratio"}
    columns.update({"evaluations": "evaluations", "operators": "operators"})
    columns = {head: name for head, name in columns.items() if any(r.get(name) is not None for r in records)}
    lines = [
        [Contender(r, None).name, f"{r['value']:.1f}", *(shown(r.get(name), name) for name in columns.values())]
        for r in records
    ]
    return title + table(["system", "median ms", *columns], len(columns) + 1, lines)


def shown(value, name: str) -> str:
    return "" if value is None else f"{value:.1f}" if name == "p95" else str(value)


def lines_by_steps(records: Sequence[dict]) -> Iterator[Tuple[tuple, List[dict]]]:
    """The records of decoding that differ by K alone, where there are several."""
    found: Dict[tuple, List[dict]] = {}
    for record in records:
        if record["benchmark"] == "decoding" and record["steps"]:
            found.setdefault(tuple(record[name] for name in LINE_FIELDS), []).append(record)
    return ((line, sorted(group, key=lambda r: r["steps"])) for line, group in found.items() if len(group) > 1)


def fits_table(records: Sequence[dict]) -> str:
    """Time as a + b K, by least squares over the K there are."""
    lines = []
    for _, group in lines_by_steps(records):
        steps, times = ([r[name] for r in group] for name in ("steps", "value"))
        b, a = np.polyfit(steps, times, 1)
        name = Contender({**group[0], "steps": None}, None).name
        lines.append([name, str(group[0]["batch"]), " ".join(map(str, steps)), f"{a:.1f}", f"{b:.2f}"])
    return lines and "**decoding as a + b K, ms**\n\n" + table(["system", "batch", "K", "a", "b"], 3, lines)


def plot(records: Sequence[dict], path: Path) -> None:
    """Median latency by K, a panel for each batch size; what has no K is a horizontal line."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    batches = sorted({record["batch"] for record in records}, key=lambda size: (isinstance(size, str), size))
    if not batches:
        return
    figure, panels = pyplot.subplots(1, len(batches), figsize=(4 * len(batches), 5), squeeze=False)
    for axes, batch in zip(panels[0], batches):
        draw(axes, [record for record in records if record["batch"] == batch])
        axes.set(title=f"batch: {batch}", xlabel="K", xscale="log", yscale="log")
        steps = sorted({record["steps"] for record in records if record["steps"]})
        axes.set_xticks(steps, [str(k) for k in steps], minor=False)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
        axes.tick_params(axis="y", which="minor", labelsize=8)
        axes.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("milliseconds a batch")
    handles, names = panels[0][0].get_legend_handles_labels()
    rows = -(-len(names) // 5)
    figure.legend(handles, names, loc="lower center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.02 + 0.05 * rows, 1, 1))
    for kind in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=150)
    pyplot.close(figure)


def draw(axes, records: Sequence[dict]) -> None:
    """The lines of one panel."""
    curves: Dict[str, List[Tuple[int, float]]] = {}
    for record in records:
        name = Contender({**record, "steps": None}, None).name
        curves.setdefault(name, []).append((record["steps"], record["value"]))
    for number, (name, points) in enumerate(curves.items()):
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3], "label": name}
        if points[0][0] is None:
            axes.axhline(points[0][1], **style)
        else:
            axes.plot(*zip(*sorted(points)), marker="o", markersize=4, **style)
