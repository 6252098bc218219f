"""Records of how long training steps take, and of the optimizer's part of them."""

import copy
import itertools
from argparse import Namespace
from dataclasses import fields
from typing import Callable, Iterator, List

import torch

from fairseq.logging import metrics
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig

from ..criterions.fastdiss import FastDiSSLoss, FastDiSSLossConfig
from ..errors import flag
from ..optim import FusedAdam
from .ablate import SYSTEMS
from .contenders import FSDFM, Contender, collate, in_turn, load, record
from .operators import operators


def trainers(args) -> List[Contender]:
    """One optimizer step of each system; MANS at its first beta."""
    model, cfg, task = load(args.path, args)
    known = {field.name for field in fields(FastDiSSLossConfig)}
    trained_with = {name: value for name, value in cfg.criterion.items() if name in known}
    found = []
    for name, off in SYSTEMS.items():
        switches = {option: flag(option) in off for option in ("no_scp", "no_mans")}
        options = {**trained_with, "sentence_avg": False, **switches}
        if not switches["no_mans"]:
            options["mans_start"] = 0.0
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
        with metrics.aggregate(new_root=True):
            task.train_step(batch, model, criterion, optimizer, next(counter))
        optimizer.step()
        optimizer.zero_grad()  # the next begins as the first did, for the working memory

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
