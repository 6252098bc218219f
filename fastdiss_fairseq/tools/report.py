"""Tables and plots of a sweep's records."""

import re
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from . import plots
from .contrasts import Lines, cached_scores, pairs_table, pooled, pooled_table, rivals, untested
from .rows import ROW_FIELDS, identity, label, row_of, table, twin, value_of, varying
from .scoring import Score

TIMING = re.compile(r"Translated ([\d,]+) sentences .* in ([\d.]+)s \(([\d.]+) sentences/s")


def timing(log: str) -> Tuple[Optional[float], Optional[float]]:
    """Seconds and sentences a second as fairseq-generate reports them."""
    found = TIMING.search(log)
    return (float(found.group(2)), float(found.group(3))) if found else (None, None)


def write(
    records: Iterable[dict], hypotheses: Lines, references: Lines, folder: Path, metric: str, baseline=None
) -> None:
    """Write ``table.md`` of all metrics, with tests and plots of one."""
    records = list(records)
    having = [record for record in records if metric in record["scores"]]
    scores = cached_scores(hypotheses, references, metric)
    parts = [quality_table(records, metric) for metric in metrics_of(records)]
    parts += [speed_table(records), pooled_table(list(pooled(having, scores, baseline)), metric, baseline)]
    pairs = rivals(having, baseline)
    parts += [pairs_table(pairs, scores, metric), untested(having, pairs, baseline), footnote(records)]
    (folder / "table.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    plot_all(having, folder, metric)


def metrics_of(records: Sequence[dict]) -> List[str]:
    return list(dict.fromkeys(name for record in records for name in record["scores"]))


def table_by_steps(records: Sequence[dict], title: str, value: Callable[[dict], Optional[float]], form: str) -> str:
    """One row a system and setting, one column a K; a system without K has its value in the last one."""
    shown = varying(records)
    steps = sorted({r["steps"] for r in records if r["steps"]})
    columns = steps + ([None] if any(r["steps"] is None for r in records) else [])
    found: Dict[tuple, dict] = {}
    for record in records:
        if value(record) is not None:
            found.setdefault(row_of(record), {})[record["steps"]] = format(value(record), form)
    heads = [ROW_FIELDS[i].replace("_", " ") for i in shown]
    heads += ["no K" if k is None else f"K = {k}" for k in columns]
    lines = [
        ["" if fields[i] is None else str(fields[i]) for i in shown] + [values.get(k, "") for k in columns]
        for fields, values in found.items()
    ]
    return f"**{title}**\n\n{table(heads, len(columns), lines)}"


def quality_table(records: Sequence[dict], metric: str) -> str:
    having = [r for r in records if metric in r["scores"]]
    return table_by_steps(having, metric, lambda r: value_of(r, metric), ".2f")


def speed_table(records: Sequence[dict]) -> str:
    having = [r for r in records if r["sentences_per_second"]]
    return having and table_by_steps(having, "sentences a second", lambda r: r["sentences_per_second"], ".0f")


def footnote(records: Sequence[dict]) -> str:
    scores = {(name, Score(**r["scores"][name]).signature) for r in records for name in r["scores"]}
    lines = [f"{name}: `{signature}`" for name, signature in sorted(scores)]
    return "  \n".join([*lines, *sorted({r["device"] for r in records})])


def plot_all(records: Sequence[dict], folder: Path, metric: str) -> None:
    """Quality against K and against latency, and what recomputing self-conditioning gains, as PNG and SVG."""
    if plots.pyplot() is None:
        return
    records = [{**r, "value": value_of(r, metric)} for r in records]
    timed = [r for r in records if r["sentences_per_second"]]
    plot(folder / "quality_by_steps", records, lambda r: r["steps"], ("K", metric))
    latency = lambda r: 1000 / r["sentences_per_second"]
    plot(folder / "quality_by_latency", timed, latency, ("milliseconds a sentence", metric))
    gaps = [gap for gap in (recompute_gap(records, r) for r in records) if gap is not None]
    plot(folder / "recompute_gap", gaps, lambda r: r["steps"], ("K", f"{metric}: recompute − previous"))


def recompute_gap(records: Sequence[dict], record: dict) -> Optional[dict]:
    """The record with its gain by recomputing as value; None where there are not both cells."""
    anew = twin(records, record, self_conditioning="recompute")
    if record["self_conditioning"] != "previous" or anew is None:
        return None
    return {**record, "value": anew["value"] - record["value"]}


def plot(path: Path, records: Sequence[dict], x: Callable[[dict], Optional[float]], labels) -> None:
    """One line a row of the table; systems without x are horizontal lines."""
    if not records:
        return
    figure, axes = plots.pyplot().subplots(figsize=(7, 4.5))
    shown, curves = varying(records), {}
    for record in records:
        curves.setdefault(row_of(record), []).append(record)
    for number, curve in enumerate(curves.values()):
        name = label(curve[0], shown)
        style = plots.style(number)
        points = sorted((x(r), r["value"]) for r in curve if x(r) is not None)
        if points:
            axes.plot(*zip(*points), marker="o", markersize=4, label=name, **style)
        else:
            axes.axhline(curve[0]["value"], label=name, **style)
    axes.set_xscale("log")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    if labels[0] == "K":
        plots.steps_axis(axes, [r["steps"] for r in records])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    plots.save(figure, path)


def print_samples(records: Iterable[dict], hypotheses: Lines, references: List[str], count: int) -> None:
    """The first sentences: the reference, and of each system, in the setting that it was decoded in first, the output
    with the fewest steps and with 5, or as nearly as many as there are."""
    records = list(records)
    shown, first = varying(records), {}
    for record in records:
        first.setdefault(record["system"], row_of(record))
    chosen = {}
    for row in first.values():
        of_row = sorted((r for r in records if row_of(r) == row), key=lambda r: r["steps"] or 0)
        chosen.update({identity(r): r for r in (of_row[0], min(of_row, key=lambda r: abs((r["steps"] or 5) - 5)))})
    for number in range(min(count, len(references))):
        print(f"\n{number + 1:2}. reference: {references[number]}")
        for record in chosen.values():
            title = label(record, shown) + (f", K = {record['steps']}" if record["steps"] else "")
            print(f"    {title}: {hypotheses(record)[number]}")
