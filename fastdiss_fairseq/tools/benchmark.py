"""Time decoding and training, system against system on the same batches in turn.

    fastdiss-benchmark data-bin/multi30k_de_en --path runs/both/checkpoint_last.pt --ar ar.pt --cmlm cmlm.pt \\
        --output runs/speed

decodes batches of the test set with FastDiSS at several K (also on the reference path), FS-DFM, the autoregressive
transformer with beams 1 and 5, NAT, CMLM with 4 and 10 iterations and the Levenshtein transformer, as far as
their checkpoints are given, and takes training steps with each.  All take each batch in turn, so that a
drift of the machine's speed meets all alike; ratios are medians over batches.  Writes results.json, size by size, and
table.md; absolute times belong to the machine, ratios are what to compare.  ``--parts profile`` says where the time goes:
the share of each part of decoding (at the --steps and batch sizes given) and of a training step; ``--parts optimizer`` times
what follows the backward pass.
"""

import argparse
import contextlib
import copy
import functools
import itertools
import random
import statistics
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from fairseq import utils
from fairseq.dataclass.configs import FairseqConfig, GenerationConfig
from fairseq.logging import metrics
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.models.nat import (
    CMLMNATransformerModel,
    FairseqNATModel,
    LevenshteinTransformerModel,
    NATransformerModel,
)
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig

from ..compat import device
from ..criterions.fastdiss import FastDiSSLoss, FastDiSSLossConfig
from ..errors import FastDiSSError
from ..generation.candidates import Special
from ..generation.config import DEPLOYMENTS, SIZE_BY_SIZE
from ..generation.deployment import Deployment
from ..loading import load as load_for
from ..models.fastdiss import FastDiSSModel
from ..models.fsdfm import FSDFMModel
from ..modules.graphs import Graphs, Recorder
from ..modules.places import fixed_sizes
from ..modules.reference import ReferenceDenoiser
from ..optim import FusedAdam
from .ablate import SYSTEMS
from .command import run_as_command
from .operators import operators
from .records import Records, circumstances, clock, peak_memory_mb
from .stopwatch import DECODING, TRAINING, stopwatch

BASELINES = ("ar", "nat", "cmlm", "levt")
FSDFM = "fsdfm"
#: Generation options of fairseq's models: name -> (baseline, options).
STOCK = {
    "ar, beam 1": ("ar", {"beam": 1}),
    "ar, beam 5": ("ar", {"beam": 5}),
    "nat": ("nat", {"iter_decode_max_iter": 0}),
    "cmlm, 4 iterations": ("cmlm", {"iter_decode_max_iter": 3, "iter_decode_force_max_iter": True}),
    "cmlm, 10 iterations": ("cmlm", {"iter_decode_max_iter": 9, "iter_decode_force_max_iter": True}),
    "levt": ("levt", {"iter_decode_max_iter": 9}),
}
#: What the checkpoint of each option must hold: its name, its class and the subclass that it must not be.
KINDS = {
    "path": ("a FastDiSS model", FastDiSSModel, ()),
    "fsdfm": ("an FS-DFM model", FSDFMModel, ()),
    "ar": ("an autoregressive model", FairseqEncoderDecoderModel, FairseqNATModel),
    "nat": ("a NAT model", NATransformerModel, CMLMNATransformerModel),
    "cmlm": ("a CMLM model", CMLMNATransformerModel, ()),
    "levt": ("a Levenshtein transformer", LevenshteinTransformerModel, ()),
}
KEY_FIELDS = ("benchmark", "system", "path", "steps", "candidates", "batch", "metric", "part")


class Contender(NamedTuple):
    """What is timed: ``run(batch)``; ``fields`` are its record's ``system``, ``path``, ``steps`` and ``candidates``."""

    fields: Dict[str, object]
    run: Callable[[dict], object]

    @property
    def name(self) -> str:
        path = {"reference": ", reference path", **{name: f", {name}" for name in DEPLOYMENTS}}.get(
            self.fields["path"], ""
        )
        steps = f", K = {self.fields['steps']}" if self.fields["steps"] else ""
        many = f", {self.fields['candidates']} candidates" if self.fields["candidates"] not in (None, 1) else ""
        return f"{self.fields['system']}{steps}{many}{path}"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder made by fairseq-preprocess")
    parser.add_argument("--path", required=True, help="FastDiSS checkpoint")
    parser.add_argument(f"--{FSDFM}", metavar="CHECKPOINT", help="checkpoint of an FS-DFM model")
    for name in BASELINES:
        parser.add_argument(f"--{name}", metavar="CHECKPOINT", help=f"checkpoint of the {name} baseline")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["decoding", "step", "training"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 10], help="length beams")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64], help="sentences a batch")
    parser.add_argument("--max-tokens", type=int, default=4000, help="of full token batches, and in training")
    parser.add_argument("--rounds", type=int, default=10, help="batches of each size")
    parser.add_argument("--subset", default="test")
    parser.add_argument("--against", default="ar, beam 5", help="the contender that ratios are taken against")
    parser.add_argument(
        "--variants", nargs="+", choices=DEPLOYMENTS, default=[], help="also decode with --decoding-VARIANT"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser


def load(path: str, args) -> tuple:
    """Model and task of a checkpoint for the data folder, in float32 however it was trained."""
    models, cfg, task = load_for(path, args.data, autocast="none")
    for name, (kind, wanted, unwanted) in KINDS.items():
        if path == getattr(args, name) and (not isinstance(models[0], wanted) or isinstance(models[0], unwanted)):
            raise FastDiSSError(f"--{name} takes the checkpoint of {kind}; this one holds {type(models[0]).__name__}")
    return models[0].to(device(args)).eval(), cfg, task


def on_reference_path(model):
    """A copy of a FastDiSS model that denoises with fairseq's own layers."""
    slow = copy.deepcopy(model)
    slow.denoiser = ReferenceDenoiser(model.denoiser, model.layer_config("decoder"))
    return slow


# Decoding


def decoders(args) -> List[Contender]:
    """All contenders of the decoding benchmark."""
    model, _, task = load(args.path, args)
    paths = {"fast": model, "reference": on_reference_path(model)}
    for name in args.variants:
        paths[name] = copy.deepcopy(model)
        Deployment(frozenset({f"decoding_{name}"})).prepare(paths[name], Special.of(task.target_dictionary))
    found = []
    for steps, candidates, path in itertools.product(args.steps, args.candidates, paths):
        if path != "reference" or steps == 5:
            request = Namespace(decoding_steps=steps, length_beam=candidates)
            facts = {"system": "fastdiss", "path": path, "steps": steps, "candidates": candidates}
            found.append(Contender(facts, translator(task, paths[path], request)))
    found += flow_decoders(args)
    for name, (baseline, options) in STOCK.items():
        if getattr(args, baseline):
            stock, _, its_task = load(getattr(args, baseline), args)
            request = GenerationConfig(**options)
            facts = {"system": name, "path": "fairseq", "steps": None, "candidates": None}
            found.append(Contender(facts, translator(its_task, stock, request)))
    return found


def flow_decoders(args) -> List[Contender]:
    """FS-DFM with the same steps and candidates, where it takes part."""
    if not args.fsdfm:
        return []
    model, _, task = load(args.fsdfm, args)
    found = []
    for steps, candidates in itertools.product(args.steps, args.candidates):
        facts = {"system": FSDFM, "path": "fast", "steps": steps, "candidates": candidates}
        request = Namespace(decoding_steps=steps, length_beam=candidates)
        found.append(Contender(facts, translator(task, model, request)))
    return found


def translator(task, model, request) -> Callable[[dict], object]:
    if hasattr(model, "prepare_for_inference_"):
        model.prepare_for_inference_(FairseqConfig())
    generator = task.build_generator([model], request)
    return lambda batch: task.inference_step(generator, [model], batch)


def decoding_batches(args) -> Dict[object, List[dict]]:
    """Batches of random sentences of each size, the same for all contenders, and full token batches."""
    _, _, task = load(args.path, args)
    task.load_dataset(args.subset)
    dataset = task.dataset(args.subset)
    shuffled = list(range(len(dataset)))
    random.Random(1).shuffle(shuffled)
    found = {}
    for size in args.batch_sizes:
        pieces = [shuffled[i : i + size] for i in range(0, len(shuffled), size)][: args.rounds]
        found[size] = [collate(dataset, piece, args) for piece in pieces]
    full = task.get_batch_iterator(dataset, max_tokens=args.max_tokens).frozen_batches
    found["tokens"] = [collate(dataset, piece, args) for piece in list(full)[: args.rounds]]
    return found


def collate(dataset, numbers: Sequence[int], args) -> dict:
    batch = dataset.collater([dataset[i] for i in numbers])
    return utils.move_to_cuda(batch) if device(args).type == "cuda" else batch


def decoding(args) -> Iterator[dict]:
    """Records of the decoding benchmark."""
    contenders = decoders(args)
    for size, found in decoding_batches(args).items():
        seconds = in_turn(contenders, found, args)
        sentences = sum(len(batch["id"]) for batch in found)
        for contender, times in zip(contenders, seconds):
            facts = {"benchmark": "decoding", "batch": size, "sentences_per_second": round(sentences / sum(times), 2)}
            yield {**record(contender, times, contenders, seconds, args), **facts}


# One evaluation of the denoiser


def step(args) -> Iterator[dict]:
    """Records of single evaluations of the network, fast path, reference path and where it is asked for as a CUDA graph,
    on the smallest and largest batches of random sentences and on token batches, whose sentences are of similar lengths."""
    model, _, _ = load(args.path, args)
    nets = {"fast": model, "reference": on_reference_path(model)}
    if "cuda_graphs" in args.variants:
        nets["cuda_graphs"] = model
    ways = {path: functools.partial(evaluate, net, path) for path, net in nets.items()}
    if "cuda_graphs" in ways:
        ways["cuda_graphs"] = recorded(ways["cuda_graphs"])
    contenders = []
    for path, run in ways.items():
        facts = {"system": "fastdiss", "path": path, "steps": None, "candidates": 1}
        contenders.append(Contender(facts, run))
    against = Namespace(**{**vars(args), "against": contenders[1].name})
    batches = decoding_batches(args)
    for size in (*sorted({min(args.batch_sizes), max(args.batch_sizes)}), "tokens"):
        found = [inputs_of(model, nets, batch) for batch in batches[size]]
        padding = 1 - torch.cat([inputs["mask"].flatten() for inputs in found]).float().mean().item()
        facts = {"benchmark": "step", "batch": size, "padding": round(padding, 3)}
        seconds = in_turn(contenders, found, args)
        for contender, times in zip(contenders, seconds):
            yield {**record(contender, times, contenders, seconds, against), **facts}


@torch.no_grad()
def inputs_of(model, nets: dict, batch: dict) -> dict:
    """Inputs of one evaluation, with as many target positions as the reference has, and what each of ``nets`` computes
    once for all steps."""
    tokens, mask = batch["net_input"]["src_tokens"], batch["target"].ne(model.padding_idx)
    z, z_bar = torch.randn(2, *mask.shape, model.cfg.latent_dim, device=mask.device)
    source_mask = tokens.ne(model.padding_idx)
    states, constant = model.encoder(tokens, source_mask), {}
    for path, net in nets.items():
        with fixed_sizes() if path == "cuda_graphs" else contextlib.nullcontext():
            constant[path] = net.denoiser.target(mask), net.denoiser.memory(states, source_mask)
    return {"mask": mask, "z": z, "z_bar": z_bar, "constant": constant}


@torch.no_grad()
def evaluate(net, path: str, inputs: dict):
    """One evaluation."""
    t = torch.full((1, 1), 0.5, device=inputs["z"].device)
    return net.denoise(inputs["z"], t, inputs["z_bar"], *inputs["constant"][path])


def recorded(run: Callable[[dict], Tensor]) -> Callable[[dict], object]:
    """``run``, recorded for each batch."""
    graphs, names = Graphs(Recorder), itertools.count()

    def replay(inputs):
        name = inputs.setdefault("name", next(names))
        return graphs(name, lambda z: (run({**inputs, "z": z}),), inputs["z"])

    return replay


# Training


def trainers(args) -> List[Contender]:
    """One optimizer step of each system; MANS at its first beta."""
    model, cfg, task = load(args.path, args)
    known = {field.name for field in fields(FastDiSSLossConfig)}
    trained_with = {name: value for name, value in cfg.criterion.items() if name in known}
    found = []
    for name, off in SYSTEMS.items():
        switches = {flag: f"--{flag.replace('_', '-')}" in off for flag in ("no_scp", "no_mans")}
        options = {**trained_with, "mans_start": 0.0, "sentence_avg": False, **switches}
        criterion = FastDiSSLoss(FastDiSSLossConfig(**options), task)
        found.append(trainer(name, copy.deepcopy(model), task, criterion))
    for name in (FSDFM, "ar", "nat"):
        if getattr(args, name):
            stock, its_cfg, its_task = load(getattr(args, name), args)
            found.append(trainer(name, stock, its_task, its_task.build_criterion(its_cfg.criterion)))
    return found


class Adam(torch.optim.Adam):
    """torch's Adam with the method that fairseq's tasks call."""

    def backward(self, loss):
        loss.backward()


def trainer(name: str, model, task, criterion) -> Contender:
    optimizer, counter = Adam(model.parameters(), lr=1e-6), itertools.count(1)

    def run(batch):
        model.train()
        optimizer.zero_grad()
        with metrics.aggregate(new_root=True):
            task.train_step(batch, model, criterion, optimizer, next(counter))
        optimizer.step()

    path = "fast" if name in (*SYSTEMS, FSDFM) else "fairseq"
    facts = {"system": name, "path": path, "steps": None, "candidates": None}
    return Contender(facts, run)


def training_batches(args) -> List[dict]:
    """Full token batches of the validation set, as many as rounds."""
    _, _, task = load(args.path, args)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    batches = task.get_batch_iterator(dataset, max_tokens=args.max_tokens).frozen_batches
    return [collate(dataset, piece, args) for piece in itertools.islice(itertools.cycle(batches), args.rounds)]


def training(args) -> Iterator[dict]:
    """Records of the training benchmark; ratios are against the self-conditioned baseline."""
    contenders, found = trainers(args), training_batches(args)
    seconds = in_turn(contenders, found, args)
    tokens = sum(batch["ntokens"] for batch in found)
    args = Namespace(**{**vars(args), "against": "standard"})
    for contender, times in zip(contenders, seconds):
        facts = {
            "benchmark": "training",
            "batch": "tokens",
            "target_tokens_per_second": round(tokens / sum(times)),
            "operators": operators(contender.run, found[0]),
        }
        yield {**record(contender, times, contenders, seconds, args), **facts}


# The optimizer


def optimizers(args) -> Iterator[dict]:
    """Records of what follows the backward pass, with fairseq's Adam and with the fused one: gradients are scaled and
    clipped, and the weights moved."""
    contenders = []
    for name, kind in (("fused_adam", FusedAdam), ("adam", FairseqAdam)):
        model, _, _ = load(args.path, args)
        facts = {"system": name, "path": None, "steps": None, "candidates": None}
        contenders.append(Contender(facts, updater(model, kind)))
    args = Namespace(**{**vars(args), "against": "adam"})
    seconds = in_turn(contenders, range(args.rounds), args)
    for contender, times in zip(contenders, seconds):
        yield {**record(contender, times, contenders, seconds, args), "benchmark": "optimizer", "batch": None}


def updater(model, kind) -> Callable[[object], None]:
    """An update of all weights with gradients that stay."""
    cfg = FairseqAdamConfig(lr=[1e-6], adam_betas="(0.9, 0.98)")
    optimizer = kind(cfg, [p for p in model.parameters() if p.requires_grad])
    for p in optimizer.params:
        p.grad = torch.randn_like(p)

    def run(_):
        optimizer.multiply_grads(0.5)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()

    return run


# Profile


def profile(args) -> Iterator[dict]:
    """Records of what share of decoding and of a training step each part takes."""
    model, _, task = load(args.path, args)
    batches = decoding_batches(args)
    for steps, size in itertools.product(args.steps, batches):
        facts = {"path": "fast", "steps": steps, "candidates": 1, "batch": size}
        run = translator(task, model, Namespace(decoding_steps=steps))
        yield from shares(f"decoding, K = {steps}", run, DECODING, batches[size], facts, args)
    found = training_batches(args)
    for contender in trainers(args):
        if contender.name in SYSTEMS:
            facts = {"path": "fast", "steps": None, "candidates": None, "batch": "tokens"}
            parts = {**TRAINING, "backward": (Adam, "backward"), "optimizer": (Adam, "step")}
            yield from shares(f"training, {contender.name}", contender.run, parts, found, facts, args)


def shares(what: str, run, parts, batches: Sequence[dict], facts: dict, args) -> Iterator[dict]:
    """A record for each part, and one for the rest, with its milliseconds a batch and its share."""
    run(batches[0])
    with stopwatch(parts, lambda: clock(args)) as seconds:
        started = clock(args)
        for batch in batches:
            run(batch)
        total = clock(args) - started
    seconds["rest"] = total - sum(seconds.values())
    for name, value in seconds.most_common():
        milliseconds = {
            "metric": "ms",
            "value": round(1000 * value / len(batches), 3),
            "share": round(value / total, 3),
        }
        yield {
            "benchmark": "profile",
            "system": what,
            "part": name,
            **facts,
            **milliseconds,
            **circumstances("fastdiss-benchmark", device(args)),
        }


# Common


def in_turn(contenders: Sequence[Contender], batches: Sequence[dict], args) -> List[List[float]]:
    """Seconds of each contender for each batch: all take a batch before any takes the next.  Before, each warms up with
    the first, and what gets ready for each size with all."""
    for contender in tqdm(contenders, desc="warming up", unit="contender", leave=False):
        started = clock(args)
        for batch in batches if contender.fields["path"] in SIZE_BY_SIZE else batches[:1]:
            contender.run(batch)
        contender.fields["warm_up_seconds"] = round(clock(args) - started, 3)
    seconds: List[List[float]] = [[] for _ in contenders]
    for batch in tqdm(batches, desc=f"{len(contenders)} contenders", unit="round"):
        for contender, times in zip(contenders, seconds):
            started = clock(args)
            contender.run(batch)
            times.append(clock(args) - started)
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
        "peak_memory_mb": peak_memory_mb(device(args)),
        **circumstances("fastdiss-benchmark", device(args)),
    }
    if args.against in names:
        others = seconds[names.index(args.against)]
        found["against"] = args.against
        found["speed_ratio"] = round(statistics.median(other / own for own, other in zip(times, others)), 3)
    return found


def table(records: Sequence[dict]) -> str:
    """A Markdown table for each benchmark and batch size."""
    parts = []
    for (benchmark, batch), group in itertools.groupby(records, lambda r: (r["benchmark"], r["batch"])):
        group = list(group)
        if benchmark == "profile":
            parts.append(profile_table(batch, group))
            continue
        rate = "target_tokens_per_second" if benchmark == "training" else "sentences_per_second"
        against = next((r["against"] for r in group if "against" in r), None)
        heads = ["system", "median ms", "p95 ms", "per second", *([f"times as fast as {against}"] if against else [])]
        counted = ["operators"] if benchmark == "training" else []
        lines = [
            f"**{benchmark}, batch: {batch}**",
            "",
            f"| {' | '.join([*heads, *counted])} |",
            "| ---" + " | ---:" * (len([*heads, *counted]) - 1) + " |",
        ]
        for r in group:
            cells = [Contender(r, None).name, f"{r['value']:.1f}", f"{r['p95']:.1f}", str(r.get(rate, ""))]
            others = [*(["speed_ratio"] if against else []), *counted]
            lines.append(f"| {' | '.join([*cells, *(str(r.get(name, '')) for name in others)])} |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, records[0]["device"]]) + "\n"


def profile_table(batch, records: Sequence[dict]) -> str:
    lines = [f"**profile, batch: {batch}**", "", "| | part | ms | share |", "| --- | --- | ---: | ---: |"]
    lines += [f"| {r['system']} | {r['part']} | {r['value']:.1f} | {100 * r['share']:.0f} % |" for r in records]
    return "\n".join(lines)


PARTS = {"decoding": decoding, "step": step, "training": training, "optimizer": optimizers, "profile": profile}


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    if min(args.rounds, *args.batch_sizes) < 1:
        raise FastDiSSError("--rounds and --batch-sizes must be at least 1")
    args.output.mkdir(parents=True, exist_ok=True)
    records = Records(args.output / "results.json", KEY_FIELDS)
    for part in args.parts:
        for found in PARTS[part](args):
            records.add(found)
    text = table(list(records))
    (args.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


def cli_main():
    run_as_command(main)
