"""Tables and a plot of a benchmark's records."""

from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import numpy as np

from . import plots
from .contenders import Contender
from .rows import table

#: What tells lines of time by K apart.
LINE_FIELDS = ("system", "path", "candidates", "batch")


def write(records: Sequence[dict], folder: Path) -> None:
    """Write ``table.md``, and ``latency_by_steps`` as PNG and SVG where decoding was timed."""
    groups: Dict[tuple, List[dict]] = {}
    for record in records:
        groups.setdefault((record["benchmark"], record["batch"]), []).append(record)
    parts = [table_of(*group, found) for group, found in groups.items()]
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
    columns.update({"evaluations": "evaluations", "operators": "operators", "working memory, MiB": "working_memory_mb"})
    columns = {head: name for head, name in columns.items() if any(r.get(name) is not None for r in records)}
    lines = [
        [Contender(r, None).name, f"{r['value']:.1f}", *(shown(r.get(name), name) for name in columns.values())]
        for r in records
    ]
    return title + table(["system", "median ms", *columns], len(columns) + 1, lines)


def shown(value, name: str) -> str:
    return "" if value is None else f"{value:.1f}" if name == "p95" else str(value)


def lines_by_steps(records: Sequence[dict]) -> Iterator[List[dict]]:
    """The records of decoding that differ by K alone, where there are several."""
    found: Dict[tuple, List[dict]] = {}
    for record in records:
        if record["benchmark"] == "decoding" and record["steps"]:
            found.setdefault(tuple(record[name] for name in LINE_FIELDS), []).append(record)
    several = (group for group in found.values() if len({record["steps"] for record in group}) > 1)
    return (sorted(group, key=lambda r: r["steps"]) for group in several)


def fits_table(records: Sequence[dict]) -> str:
    """Time as a + b K, by least squares over the K there are."""
    lines = []
    for group in lines_by_steps(records):
        steps, times = ([r[name] for r in group] for name in ("steps", "value"))
        b, a = np.polyfit(steps, times, 1)
        lines.append([name_of(group[0]), str(group[0]["batch"]), " ".join(map(str, steps)), f"{a:.1f}", f"{b:.2f}"])
    return "**decoding as a + b K, ms**\n\n" + table(["system", "batch", "K", "a", "b"], 3, lines) if lines else ""


def plot(records: Sequence[dict], path: Path) -> None:
    """Median latency by K, a panel for each batch size; what has no K is a horizontal line."""
    batches = sorted({record["batch"] for record in records}, key=lambda size: (isinstance(size, str), size))
    pyplot = plots.pyplot() if batches else None
    if pyplot is None:
        return
    names = list(dict.fromkeys(map(name_of, records)))
    figure, panels = pyplot.subplots(1, len(batches), figsize=(4 * len(batches), 5), squeeze=False)
    handles: dict = {}
    for axes, batch in zip(panels[0], batches):
        handles.update(draw(axes, [record for record in records if record["batch"] == batch], names))
        axes.set(title=f"batch: {batch}", xlabel="K", xscale="log", yscale="log")
        plots.steps_axis(axes, [record["steps"] for record in records])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
        axes.tick_params(axis="y", which="minor", labelsize=8)
        axes.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("milliseconds a batch")
    figure.legend(handles.values(), handles, loc="lower center", ncol=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.02 + 0.05 * -(-len(names) // 5), 1, 1))
    plots.save(figure, path)


def draw(axes, records: Sequence[dict], names: Sequence[str]) -> dict:
    """Draw one panel; its lines by name, which tells how each looks in all."""
    curves: Dict[str, List[Tuple[int, float]]] = {}
    for record in records:
        curves.setdefault(name_of(record), []).append((record["steps"], record["value"]))
    drawn = {}
    for name, points in curves.items():
        style = plots.style(names.index(name))
        if points[0][0] is None:
            drawn[name] = axes.axhline(points[0][1], **style)
        else:
            (drawn[name],) = axes.plot(*zip(*sorted(points)), marker="o", markersize=4, **style)
    return drawn


def name_of(record: dict) -> str:
    """A line's name: its record's without K."""
    return Contender({**record, "steps": None}, None).name
