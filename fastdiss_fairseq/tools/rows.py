"""Rows of a sweep's tables: what tells records apart, how they are named and which is another's counterpart."""

from typing import Iterable, List, Optional, Sequence

#: What may tell rows of a table apart, in the order of its columns.
ROW_FIELDS = (
    "benchmark", "split", "system", "seed", "self_conditioning", "length_beam", "noise_beam", "choice", "solver",
    "estimate", "noise_factor", "told_noise_factor", "temperature", "repeats", "length_factor", "decoding_seed",
)  # fmt: skip


def row_of(record: dict) -> tuple:
    return tuple(record.get(name) for name in ROW_FIELDS)


def varying(records: Sequence[dict]) -> List[int]:
    """The numbers of the row fields that differ between records; the system always counts."""
    values = [set(column) - {None} for column in zip(*map(row_of, records))]
    return [i for i, name in enumerate(ROW_FIELDS) if name == "system" or len(values[i]) > 1]


def label(record: dict, shown: Sequence[int]) -> str:
    """The fields ``shown`` of a record in words: names as they are, numbers with their field's."""
    fields = [(ROW_FIELDS[i].replace("_", " "), row_of(record)[i]) for i in shown if row_of(record)[i] is not None]
    return ", ".join(value if isinstance(value, str) else f"{name} {value}" for name, value in fields)


def identity(record: dict) -> tuple:
    """What a cell is: its row, K and references."""
    return (*row_of(record), record["steps"], record.get("reference_sha256"))


def twin(records: Iterable[dict], record: dict, **other) -> Optional[dict]:
    """The record, of the same references, that differs from ``record`` by the fields ``other`` only."""
    wanted = identity({**record, **other})
    return next((r for r in records if identity(r) == wanted), None)


def value_of(record: dict, metric: str) -> float:
    return record["scores"][metric]["value"]


def table(heads: Sequence[str], numbers: int, lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown whose last ``numbers`` columns are set to the right."""
    rule = ["---"] * (len(heads) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))
