"""Records of how long decoding, choosing and single evaluations take, and whether all paths give the same."""

import contextlib
import copy
import functools
import itertools
import random
from argparse import Namespace
from typing import Callable, Dict, Iterator, List

import torch
from torch import Tensor

from fairseq.dataclass.configs import FairseqConfig, GenerationConfig

from ..compat import device
from ..errors import FastDiSSError
from ..generation.choice import mbr
from ..modules.graphs import Graphs, Recorder
from ..modules.places import fixed_sizes
from ..modules.reference import ReferenceDenoiser
from .contenders import AGAINST, FSDFM, Contender, collate, in_turn, load, record
from .records import circumstances

#: The reference path, which is slow, is decoded by the number of steps next to this alone.
REFERENCE_STEPS = 5
#: Generation options of fairseq's models: name -> (baseline, options).
STOCK = {
    "ar, beam 1": ("ar", {"beam": 1}),
    "ar, beam 5": ("ar", {"beam": 5}),
    "nat": ("nat", {"iter_decode_max_iter": 0}),
    "cmlm, 4 iterations": ("cmlm", {"iter_decode_max_iter": 3, "iter_decode_force_max_iter": True}),
    "cmlm, 10 iterations": ("cmlm", {"iter_decode_max_iter": 9, "iter_decode_force_max_iter": True}),
    "levt": ("levt", {"iter_decode_max_iter": 9}),
}


def on_reference_path(model):
    """A copy of a FastDiSS model that denoises with fairseq's own layers."""
    slow = copy.deepcopy(model)
    slow.denoiser = ReferenceDenoiser(model.denoiser, model.layer_config("decoder"))
    return slow


def paths_of(args) -> Dict[str, tuple]:
    """The model as it is decoded by each path, fast, reference and the variants asked for, with its task."""
    model, _, task = load(args.path, args)
    paths = {"fast": (model, task), "reference": (on_reference_path(model), task)}
    for name in args.variants:
        changed, _, its_task = load(args.path, args, **{f"decoding_{name}": True})
        paths[name] = changed, its_task
    return paths


# Decoding


def decoders(args) -> List[Contender]:
    """All contenders of the decoding benchmark."""
    paths, found, slow = paths_of(args), [], min(args.steps, key=lambda k: abs(k - REFERENCE_STEPS))
    for steps, candidates, path in itertools.product(args.steps, args.candidates, paths):
        model, task = paths[path]
        if path != "reference" or steps == slow:
            request = Namespace(decoding_steps=steps, length_beam=candidates)
            facts = {"system": "fastdiss", "path": path, "steps": steps, "candidates": candidates}
            found.append(Contender(facts, translator(task, model, request), evaluations))
    found += flow_decoders(args)
    for name, (baseline, options) in STOCK.items():
        if getattr(args, baseline):
            stock, _, its_task = load(getattr(args, baseline), args)
            request = GenerationConfig(**options)
            facts = {"system": name, "path": "fairseq", "steps": None, "candidates": None}
            found.append(Contender(facts, translator(its_task, stock, request), fairseq_evaluations))
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
        found.append(Contender(facts, translator(task, model, request), evaluations))
    return found


def translator(task, model, request) -> Callable[[dict], object]:
    if hasattr(model, "prepare_for_inference_"):
        model.prepare_for_inference_(FairseqConfig())
    generator = task.build_generator([model], request)
    return lambda batch: task.inference_step(generator, [model], batch)


def evaluations(output: List[List[dict]]) -> List[int]:
    """Network evaluations of each sentence."""
    return [hypotheses[0]["steps"] for hypotheses in output]


def fairseq_evaluations(output: List[List[dict]]) -> List[int]:
    """Of fairseq's models: iterations, which fairseq numbers from 0 (of the Levenshtein transformer up to three passes
    each), or where there are none the tokens of the best hypothesis."""
    best = [hypotheses[0] for hypotheses in output]
    return [each["steps"] + 1 if "steps" in each else len(each["tokens"]) for each in best]


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


def decoding(args) -> Iterator[dict]:
    """Records of the decoding benchmark.

    Raises:
        FastDiSSError: no such contender to take ratios against.
    """
    contenders = decoders(args)
    names = [contender.name for contender in contenders]
    if args.against not in (AGAINST, *names):
        raise FastDiSSError(f"there is no contender '{args.against}' (--against takes one of: {'; '.join(names)})")
    for size, found in decoding_batches(args).items():
        seconds = in_turn(contenders, found, args)
        sentences = sum(map(sentences_of, found))
        for contender, times in zip(contenders, seconds):
            facts = {"benchmark": "decoding", "batch": size, "sentences_per_second": round(sentences / sum(times), 2)}
            yield {**record(contender, times, contenders, seconds, args), **facts}


# Choosing among candidates


def choice(args) -> Iterator[dict]:
    """A record of MBR alone: over all sentences of the split, of as many candidate lengths as the most of
    ``args.candidates``."""
    model, _, task = load(args.path, args)
    batches = whole_split(task, args)
    generator = task.build_generator(
        [model], Namespace(decoding_steps=min(args.steps), length_beam=max(args.candidates))
    )
    with torch.no_grad():
        found = [generator.decode(model, batch["net_input"]["src_tokens"], generator.decoding) for batch in batches]
    run = lambda split: [mbr(batch.tokens, batch.mask, [generator.eos]) for batch in split]
    facts = {"system": "mbr", "path": "fast", "steps": min(args.steps), "candidates": max(args.candidates)}
    contenders = [Contender(facts, run)]
    seconds = in_turn(contenders, [found] * args.rounds, args)
    rate = round(args.rounds * sum(map(sentences_of, batches)) / sum(seconds[0]), 2)
    facts = {"benchmark": "choice", "batch": "split", "sentences_per_second": rate}
    yield {**record(contenders[0], seconds[0], contenders, seconds, args), **facts}


def whole_split(task, args) -> List[dict]:
    """All sentences of the split, in batches of the largest of ``args.batch_sizes``, longest together."""
    task.load_dataset(args.subset)
    dataset = task.dataset(args.subset)
    pieces = task.get_batch_iterator(dataset, max_sentences=max(args.batch_sizes)).frozen_batches
    return [collate(dataset, piece, args) for piece in pieces]


def sentences_of(batch: dict) -> int:
    return len(batch["id"])


# Agreement


def agreement(args) -> Iterator[dict]:
    """Records of how many sentences of the split, in percent, get the very tokens of the fast path from the others."""
    paths = paths_of(args)
    batches = whole_split(paths["fast"][1], args)
    for steps in args.steps:
        found = {path: tokens_by(task, model, steps, batches) for path, (model, task) in paths.items()}
        for path in list(found)[1:]:
            same = sum(ours == theirs for ours, theirs in zip(found["fast"], found[path]))
            facts = {"benchmark": "agreement", "system": "fastdiss", "path": path, "steps": steps, "candidates": 1}
            share = {"metric": "same_sentences_percent", "value": round(100 * same / len(found[path]), 2)}
            where = circumstances("fastdiss-benchmark", device(args))
            yield {**facts, **share, "batch": max(args.batch_sizes), "sentences": len(found[path]), **where}


def tokens_by(task, model, steps: int, batches: List[dict]) -> List[List[int]]:
    """The best hypothesis of each sentence."""
    run = translator(task, model, Namespace(decoding_steps=steps))
    return [hypotheses[0]["tokens"].tolist() for batch in batches for hypotheses in run(batch)]


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
    times = net.time_inputs(torch.full((1, 1), 0.5, device=inputs["z"].device))
    return net.denoise(inputs["z"], times, inputs["z_bar"], *inputs["constant"][path])


def recorded(run: Callable[[dict], Tensor]) -> Callable[[dict], object]:
    """``run``, recorded for each batch."""
    graphs, names = Graphs(Recorder), itertools.count()

    def replay(inputs):
        name = inputs.setdefault("name", next(names))
        return graphs(name, lambda z: (run({**inputs, "z": z}),), inputs["z"])

    return replay
