"""What a sweep's records are tested for: each system against a baseline, recomputed against reused self-conditioning
estimates, and, where the records are of the paper's ablation, its claims; of several seeds as means."""

from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .rows import ROW_FIELDS, identity, label, table, twin, varying
from .significance import RESAMPLES, Difference, difference_of, resampled_scores

#: The scores of a record's corpus and of those drawn from it.
Scores = Callable[[dict], np.ndarray]
Lines = Callable[[dict], List[str]]

PREVIOUS, RECOMPUTE = "previous", "recompute"


#: A contrast: (weight, system, self-conditioning) of each score that it is the sum of.
Terms = Tuple[Tuple[int, str, str], ...]


def gap(system: str, sign: int = 1) -> Terms:
    """The terms of what recomputing the estimate gains over reusing it."""
    return ((sign, system, RECOMPUTE), (-sign, system, PREVIOUS))


def gain(system: str, over: str) -> Terms:
    """The terms of a system's gain over another, both reusing the estimate."""
    return ((1, system, PREVIOUS), (-1, over, PREVIOUS))


#: The contrasts of the ablation.
ABLATION: Dict[str, Terms] = {
    "reusing costs: gap of standard": gap("standard"),
    "SCP closes it: gap of standard − gap of scp": gap("standard") + gap("scp", -1),
    "both close it: gap of standard − gap of scp+mans": gap("standard") + gap("scp+mans", -1),
    "SCP: scp − standard": gain("scp", "standard"),
    "MANS: mans − standard": gain("mans", "standard"),
    "MANS adds to SCP: scp+mans − scp": gain("scp+mans", "scp"),
    "both: scp+mans − standard": gain("scp+mans", "standard"),
}


class Pooled(NamedTuple):
    """A contrast at one K: the mean over seeds, and the value of each.  It is tested over sentences, so it speaks of these
    trainings; how others would differ the values of the seeds show."""

    name: str
    terms: Terms
    record: dict  # one of those that it is of
    mean: Difference
    by_seed: Dict[object, float]


def cached_scores(hypotheses: Lines, references: Lines, metric: str) -> Scores:
    """Scores drawn once for each record."""
    found: Dict[tuple, np.ndarray] = {}

    def scores(record: dict) -> np.ndarray:
        key = identity(record)
        if key not in found:
            found[key] = resampled_scores(hypotheses(record), references(record), metric)
        return found[key]

    return scores


def rivals(records: Sequence[dict], baseline: Optional[str]) -> List[Tuple[dict, dict]]:
    """Each system and the baseline in the same setting, and `recompute` and `previous`.  Where the baseline has settings and
    the other has none, the baseline comes first, so that they are told."""
    others = [r for r in records if baseline and r["system"] != baseline]
    pairs = [(r, twin(records, r, system=baseline)) for r in others]
    named = [r for r in records if r["system"] == baseline]
    for record in [r for r, found in pairs if found is None]:
        unlike = [(record, other) for other in outside(record, named)]
        pairs += [(b, a) if a.get("solver") is None and b.get("solver") else (a, b) for a, b in unlike]
    anew = [r for r in records if r["self_conditioning"] == RECOMPUTE]
    pairs += [(r, twin(records, r, self_conditioning=PREVIOUS)) for r in anew]
    return [(a, b) for a, b in pairs if b is not None]


def untested(records: Sequence[dict], pairs: Sequence[Tuple[dict, dict]], baseline: Optional[str]) -> str:
    """What is said of systems that the baseline has no cell for."""
    of_pairs = [{record["system"] for record in pair} for pair in pairs]
    tested = {baseline}.union(*(systems for systems in of_pairs if baseline in systems))
    left = dict.fromkeys(r["system"] for r in records if r["system"] not in tested)
    if not baseline or not left:
        return ""
    return f"Not tested against {baseline}, which has no cell of the same seed and settings: {', '.join(left)}."


def outside(record: dict, named: Sequence[dict]) -> List[dict]:
    """Those of ``named`` that a record is compared with though settings tell them apart, as those of another model's output,
    which has none: of the same text, of as many steps where both have steps, with repeats treated alike where that was done."""

    def comparable(other: dict) -> bool:
        alike = all(record.get(name) == other.get(name) for name in ("benchmark", "split", "reference_sha256"))
        has_none = None in (record.get("solver"), other.get("solver"))
        return alike and has_none and (record["steps"] == other["steps"] or None in (record["steps"], other["steps"]))

    found = [other for other in named if comparable(other)]
    return [other for other in found if other.get("repeats") == record.get("repeats")] or found


def pairs_table(pairs: Sequence[Tuple[dict, dict]], scores: Scores, metric: str) -> str:
    """The differences of pairs of records."""
    if not pairs:
        return ""
    shown = varying([record for record, _ in pairs])
    lines = []
    for record, other in pairs:
        against = other["system"] if record["system"] != other["system"] else PREVIOUS
        found = difference_of(scores(record) - scores(other))
        steps = " / ".join(str(r["steps"]) for r in (record, other) if r["steps"])
        steps = steps if record["steps"] != other["steps"] else str(record["steps"] or "")
        lines.append([label(record, shown), against, steps, *figures(found)])
    return titled(f"Differences in {metric}", table(["system", "against", "K", *FIGURES], 4, lines))


FIGURES = ("difference", "95 % interval", "p")


def figures(found: Difference) -> List[str]:
    return [f"{found.value:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}", f"{found.p:.3f}"]


def titled(title: str, text: str) -> str:
    return f"**{title} (paired bootstrap, two-sided, {RESAMPLES:,} resamples)**\n\n{text}"


def contrasts_of(records: Sequence[dict], baseline: Optional[str]) -> Dict[str, Terms]:
    """Those of the ablation, and of each other system against the baseline."""
    others = dict.fromkeys(r["system"] for r in records if baseline and r["system"] != baseline)
    gains = {f"{system} − {baseline}": gain(system, baseline) for system in others}
    return {**ABLATION, **{name: terms for name, terms in gains.items() if terms not in ABLATION.values()}}


def pooled(records: Sequence[dict], scores: Scores, baseline: Optional[str] = None) -> Iterable[Pooled]:
    """The contrasts that the records allow, of each setting and K, over all seeds that have them."""
    cells = {identity(r): r for r in reversed(records)}
    settings = {identity({**r, "system": None, "seed": None}): r for r in records if r["self_conditioning"] == PREVIOUS}
    for name, terms in contrasts_of(records, baseline).items():
        for setting in settings.values():
            found = {}
            for seed in dict.fromkeys(r["seed"] for r in records):
                of = lambda system, how: {**setting, "system": system, "self_conditioning": how, "seed": seed}
                sides = [(weight, cells.get(identity(of(system, how)))) for weight, system, how in terms]
                if all(record is not None for _, record in sides):
                    found[seed] = sum(weight * scores(record) for weight, record in sides)
            if found:
                mean = difference_of(sum(found.values()) / len(found))
                yield Pooled(name, terms, setting, mean, {seed: values[0] for seed, values in found.items()})


def is_of_pair(terms: Terms, baseline: Optional[str]) -> bool:
    """Whether :func:`pairs_table` has a contrast, too, of one seed."""
    named = {system for _, system, _ in terms}
    return len(terms) == 2 and (len(named) == 1 or baseline in named)


def pooled_table(contrasts: Sequence[Pooled], metric: str, baseline: Optional[str]) -> str:
    """Contrasts as means over seeds; nothing where they are no more than :func:`pairs_table` has."""
    if not any(len(contrast.by_seed) > 1 or not is_of_pair(contrast.terms, baseline) for contrast in contrasts):
        return ""
    shown = [i for i in varying([contrast.record for contrast in contrasts]) if ROW_FIELDS[i] not in ("system", "seed")]
    seeds = sorted({seed for contrast in contrasts for seed in contrast.by_seed}, key=lambda seed: (seed is None, seed))
    lines = []
    for name, _, record, mean, by_seed in contrasts:
        called = ", ".join(filter(None, [name, label(record, shown)]))
        each = " / ".join(f"{by_seed[seed]:+.2f}" if seed in by_seed else "–" for seed in seeds)
        lines.append([called, f"{record['steps']}", each, *figures(mean)])
    heads = ["contrast", "K", f"seed {' / '.join(map(str, seeds))}", "mean", *FIGURES[1:]]
    return titled(f"Means of these trainings in {metric}, over sentences", table(heads, 5, lines))
