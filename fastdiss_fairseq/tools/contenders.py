"""What is timed: systems that take the same batches in turn."""

import statistics
from typing import Callable, Dict, List, NamedTuple, Sequence

from tqdm import tqdm

from fairseq import utils
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.models.nat import (
    CMLMNATransformerModel,
    FairseqNATModel,
    LevenshteinTransformerModel,
    NATransformerModel,
)

from ..compat import device
from ..errors import FastDiSSError
from ..generation.config import DEPLOYMENTS, SIZE_BY_SIZE
from ..loading import load as load_for
from ..models.fastdiss import FastDiSSModel
from ..models.fsdfm import FSDFMModel
from .memory import working_memory_mb
from .records import circumstances, clock

BASELINES = ("ar", "nat", "cmlm", "levt")
#: The contender that ratios of decoding are taken against, where it takes part.
AGAINST = "ar, beam 5"
#: Paths that decode in memory which is not taken from torch batch by batch.
OWN_MEMORY = ("cuda_graphs", "onnx")
FSDFM = "fsdfm"
#: What the checkpoint of each option must hold: its name, its class and the subclass that it must not be.
KINDS = {
    "path": ("a FastDiSS model", FastDiSSModel, ()),
    "fsdfm": ("an FS-DFM model", FSDFMModel, ()),
    "ar": ("an autoregressive model", FairseqEncoderDecoderModel, FairseqNATModel),
    "nat": ("a NAT model", NATransformerModel, CMLMNATransformerModel),
    "cmlm": ("a CMLM model", CMLMNATransformerModel, ()),
    "levt": ("a Levenshtein transformer", LevenshteinTransformerModel, ()),
}


class Contender(NamedTuple):
    """What is timed: ``run(batch)``; ``fields`` are its record's ``system``, ``path``, ``steps`` and ``candidates``;
    ``count`` gives the network evaluations of each sentence from what it returns."""

    fields: Dict[str, object]
    run: Callable[[dict], object]
    count: Callable[[object], List[int]] = lambda output: []

    @property
    def name(self) -> str:
        path = {"reference": ", reference path", **{name: f", {name}" for name in DEPLOYMENTS}}.get(
            self.fields.get("path"), ""
        )
        steps = f", K = {self.fields['steps']}" if self.fields["steps"] else ""
        many = f", {self.fields['candidates']} candidates" if self.fields["candidates"] not in (None, 1) else ""
        return f"{self.fields['system']}{steps}{many}{path}"


def load(path: str, args, **options) -> tuple:
    """Model and task of a checkpoint for the data folder, in float32 however it was trained; ``options`` of decoding that
    differ from those of training."""
    models, cfg, task = load_for(path, args.data, autocast="none", **options)
    for name, (kind, wanted, unwanted) in KINDS.items():
        if path == getattr(args, name) and (not isinstance(models[0], wanted) or isinstance(models[0], unwanted)):
            raise FastDiSSError(f"--{name} takes the checkpoint of {kind}; this one holds {type(models[0]).__name__}")
    return models[0].to(device(args)).eval(), cfg, task


def collate(dataset, numbers: Sequence[int], args) -> dict:
    batch = dataset.collater([dataset[i] for i in numbers])
    return utils.move_to_cuda(batch) if device(args).type == "cuda" else batch


def in_turn(contenders: Sequence[Contender], batches: Sequence[dict], args) -> List[List[float]]:
    """Seconds of each contender for each batch: all take a batch before any takes the next.  Before, each warms up with
    the first, and what gets ready for each size with all; then the first batch's working memory is measured."""
    for contender in tqdm(contenders, desc="warming up", unit="contender", leave=False):
        started = clock(args)
        for batch in batches if contender.fields["path"] in SIZE_BY_SIZE else batches[:1]:
            contender.run(batch)
        contender.fields["warm_up_seconds"] = round(clock(args) - started, 3)
        own = contender.fields["path"] in OWN_MEMORY
        contender.fields["working_memory_mb"] = (
            None if own else working_memory_mb(contender.run, batches[0], device(args))
        )
    seconds: List[List[float]] = [[] for _ in contenders]
    evaluations: List[List[int]] = [[] for _ in contenders]
    for batch in tqdm(batches, desc=f"{len(contenders)} contenders", unit="round"):
        for contender, times, counts in zip(contenders, seconds, evaluations):
            started = clock(args)
            output = contender.run(batch)
            times.append(clock(args) - started)
            counts += contender.count(output)
    for contender, counts in zip(contenders, evaluations):
        contender.fields["evaluations"] = round(statistics.mean(counts), 2) if counts else None
    return seconds


def record(contender: Contender, times: List[float], contenders, seconds, args) -> dict:
    """Latency and its ratio to the contender that ``args.against`` names."""
    names = [other.name for other in contenders]
    milliseconds = sorted(1000 * value for value in times)
    found = {
        **contender.fields,
        "metric": "latency_ms",
        "value": round(statistics.median(milliseconds), 3),
        "p95": round(milliseconds[min(len(milliseconds) - 1, int(0.95 * len(milliseconds)))], 3),
        "rounds": len(times),
        **circumstances("fastdiss-benchmark", device(args)),
    }
    if args.against in names:
        others = seconds[names.index(args.against)]
        found["against"] = args.against
        found["speed_ratio"] = round(statistics.median(other / own for own, other in zip(times, others)), 3)
    return found
