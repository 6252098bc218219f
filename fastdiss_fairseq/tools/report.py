"""Tables and plots of a sweep's records."""

import re
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from .scoring import Score, paired_bootstrap

#: What may tell rows of a table apart, in the order of its columns.
ROW_FIELDS = (
    "benchmark", "split", "system", "seed", "self_conditioning", "candidates", "choice", "solver", "estimate",
    "noise_factor", "told_noise_factor", "temperature", "repeats", "length_factor", "decoding_seed",
)  # fmt: skip
TIMING = re.compile(r"Translated ([\d,]+) sentences .* in ([\d.]+)s \(([\d.]+) sentences/s")

#: The hypotheses, or references, of a record.
Lines = Callable[[dict], List[str]]


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
    tests = [compare(a, b, hypotheses, references, metric) for a, b in rivals(having, baseline)]
    parts = [quality_table(records, metric) for metric in metrics_of(records)]
    parts += [speed_table(records), significance_table(tests, metric), footnote(records)]
    (folder / "table.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    plot_all(having, folder, metric)


def metrics_of(records: Sequence[dict]) -> List[str]:
    return list(dict.fromkeys(name for record in records for name in record["scores"]))


def row_of(record: dict) -> tuple:
    return tuple(record.get(name) for name in ROW_FIELDS)


def varying(records: Sequence[dict]) -> List[int]:
    """The numbers of the row fields that differ between records; the system always counts."""
    values = [set(column) - {None} for column in zip(*map(row_of, records))]
    return [i for i, name in enumerate(ROW_FIELDS) if name == "system" or len(values[i]) > 1]


def label(record: dict, shown: Sequence[int]) -> str:
    return ", ".join(str(row_of(record)[i]) for i in shown if row_of(record)[i] is not None)


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
    lines = [f"**{title}**", "", row(heads), row(["---"] * len(shown) + ["---:"] * len(columns))]
    for fields, values in found.items():
        names = ["" if fields[i] is None else str(fields[i]) for i in shown]
        lines.append(row(names + [values.get(k, "") for k in columns]))
    return "\n".join(lines)


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def quality_table(records: Sequence[dict], metric: str) -> str:
    having = [r for r in records if metric in r["scores"]]
    return table_by_steps(having, metric, lambda r: value_of(r, metric), ".2f")


def value_of(record: dict, metric: str) -> float:
    return record["scores"][metric]["value"]


def speed_table(records: Sequence[dict]) -> str:
    having = [r for r in records if r["sentences_per_second"]]
    return having and table_by_steps(having, "sentences a second", lambda r: r["sentences_per_second"], ".0f")


def footnote(records: Sequence[dict]) -> str:
    scores = {(name, Score(**r["scores"][name]).signature) for r in records for name in r["scores"]}
    lines = [f"{name}: `{signature}`" for name, signature in sorted(scores)]
    return "  \n".join([*lines, *sorted({r["device"] for r in records})])


def rivals(records: Sequence[dict], baseline: Optional[str]) -> List[Tuple[dict, dict]]:
    """Each system and the baseline in the same setting, and `recompute` and `previous`."""
    pairs = [(r, twin(records, r, system=baseline)) for r in records if baseline and r["system"] != baseline]
    anew = [r for r in records if r["self_conditioning"] == "recompute"]
    pairs += [(r, twin(records, r, self_conditioning="previous")) for r in anew]
    return [(a, b) for a, b in pairs if b is not None]


def twin(records: Sequence[dict], record: dict, **other) -> Optional[dict]:
    """The record, of the same references, that differs from ``record`` by the fields ``other`` only."""
    identity = lambda r: (*row_of(r), r["steps"], r.get("reference_sha256"))
    wanted = identity({**record, **other})
    return next((r for r in records if identity(r) == wanted), None)


def compare(record: dict, against: dict, hypotheses: Lines, references: Lines, metric: str) -> dict:
    return {
        "record": record,
        "against": against["system"] if record["system"] != against["system"] else "previous",
        "difference": value_of(record, metric) - value_of(against, metric),
        "p": paired_bootstrap(hypotheses(record), hypotheses(against), references(record), metric),
    }


def significance_table(tests: Sequence[dict], metric: str) -> str:
    if not tests:
        return ""
    shown = varying([test["record"] for test in tests])
    lines = [
        f"**Differences in {metric} and their p-values (paired bootstrap, 1,000 resamples)**", "",
        row(["system", "against", "K", "difference", "p"]), row(["---", "---", "---:", "---:", "---:"]),
    ]  # fmt: skip
    for test in tests:
        name = label(test["record"], shown)
        figures = [f"{test['record']['steps']}", f"{test['difference']:+.2f}", f"{test['p']:.3f}"]
        lines.append(row([name, test["against"], *figures]))
    return "\n".join(lines)


def plot_all(records: Sequence[dict], folder: Path, metric: str) -> None:
    """Quality against K and against latency, and what recomputing self-conditioning gains, as PNG and SVG."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: pip install matplotlib")
        return
    matplotlib.use("Agg")
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
    from matplotlib import pyplot

    if not records:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    shown, curves = varying(records), {}
    for record in records:
        curves.setdefault(row_of(record), []).append(record)
    for number, curve in enumerate(curves.values()):
        name = label(curve[0], shown)
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
        points = sorted((x(r), r["value"]) for r in curve if x(r) is not None)
        if points:
            axes.plot(*zip(*points), marker="o", markersize=4, label=name, **style)
        else:
            axes.axhline(curve[0]["value"], label=name, **style)
    axes.set_xscale("log")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    if labels[0] == "K":
        steps = sorted({r["steps"] for r in records if r["steps"]})
        axes.set_xticks(steps, [str(k) for k in steps], minor=False)
        axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=150)
    pyplot.close(figure)


def print_samples(records: Iterable[dict], hypotheses: Lines, references: List[str], count: int) -> None:
    """The first sentences: the reference and each system's output with the fewest and with 5 steps."""
    chosen: Dict[tuple, dict] = {}
    for record in sorted(records, key=lambda r: abs((r["steps"] or 5) - 5)):
        chosen.setdefault((record["system"], record["steps"] in (1, None)), record)
    for number in range(min(count, len(references))):
        print(f"\n{number + 1:2}. reference: {references[number]}")
        for record in chosen.values():
            title = record["system"] + (f", K = {record['steps']}" if record["steps"] else "")
            print(f"    {title}: {hypotheses(record)[number]}")
