"""Sequence-level knowledge distillation (Kim and Rush, 2016): a data folder whose training targets a teacher wrote.

    fastdiss-distill data-bin/multi30k_de_en --path runs/ar/checkpoint_best.pt --output data-bin/multi30k_de_en_distilled

The teacher, any fairseq model of translation, decodes the training sources by beam search; all other files of the
folder are copied.  Finished pieces are kept in OUTPUT.parts, and the same command goes on from them.  Several
processes or machines share the work by ``--shard 1/4`` to ``--shard 4/4``; the same command without ``--shard``
then makes the folder.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Dict, Iterator, List

import torch

from fairseq import utils
from fairseq.data import indexed_dataset
from fairseq.dataclass.configs import FairseqConfig, GenerationConfig

from ..bundle import sha256
from ..compat import device
from ..errors import FastDiSSError
from ..loading import load, weights_of
from .command import run_as_command
from .records import claim, save, sha256_of_training

#: Sentences that are decoded and saved together.
PIECE = 2000


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-distill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder made by fairseq-preprocess")
    parser.add_argument("--path", required=True, help="the teacher's checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="data folder to make")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=8000, help="source tokens a batch, padding included")
    parser.add_argument("--shard", metavar="I/N", help="decode the I-th of N parts only")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser


class Teacher:
    """A model that writes targets for the training sources of a data folder."""

    def __init__(self, args):
        self.models, _, self.task = load(args.path, args.data)
        for model in self.models:
            model.to(device(args)).eval().prepare_for_inference_(FairseqConfig())
        self.device = device(args)
        self.task.load_dataset("train")
        self.dataset = self.task.dataset("train")
        self.generator = self.task.build_generator(self.models, GenerationConfig(beam=args.beam))

    def pieces(self) -> List[List[int]]:
        """Sentence numbers by source length, in pieces."""
        order = sorted(range(len(self.dataset)), key=lambda i: (int(self.dataset.src_sizes[i]), i))
        return [order[i : i + PIECE] for i in range(0, len(order), PIECE)]

    def write(self, numbers: List[int], max_tokens: int) -> Dict[int, List[int]]:
        """Token ids of the best hypothesis for each sentence; the given target where the teacher wrote nothing."""
        found = {}
        for batch in batches(numbers, self.dataset.src_sizes, max_tokens):
            sample = self.dataset.collater([self.dataset[i] for i in batch])
            sample = utils.move_to_cuda(sample) if self.device.type == "cuda" else sample
            for i, hypotheses in zip(
                sample["id"].tolist(), self.task.inference_step(self.generator, self.models, sample)
            ):
                tokens = hypotheses[0]["tokens"].tolist()
                found[i] = tokens if len(tokens) > 1 else self.dataset[i]["target"].tolist()
        return found


def batches(numbers: List[int], sizes, max_tokens: int) -> Iterator[List[int]]:
    """Consecutive sentences, sorted by length, of at most ``max_tokens`` with padding (at least one sentence)."""
    batch: List[int] = []
    for i in numbers:
        if batch and (len(batch) + 1) * sizes[i] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def shard(text: str):
    """``I/N`` as (I - 1, N).

    Raises:
        FastDiSSError: not two numbers with 1 <= I <= N.
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise FastDiSSError(f"--shard takes I/N with 1 <= I <= N, not {text}")
    return int(first) - 1, int(second)


def open_parts(args) -> Path:
    """The folder of finished pieces.

    Raises:
        FastDiSSError: it holds another teacher's, or another beam's, or those of other data.
    """
    parts = args.output.with_name(args.output.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    teacher, data = sha256(args.path), sha256_of_training(args.data)
    claim(parts / "settings.json", {"teacher_sha256": teacher, "beam": args.beam, "piece": PIECE, "data_sha256": data})
    return parts


def decode(args, teacher: Teacher, parts: Path) -> Dict[int, List[int]]:
    """Decode the pieces of this shard that are missing; returns all that is there."""
    index, count = shard(args.shard or "1/1")
    found: Dict[int, List[int]] = {}
    pieces = teacher.pieces()
    for number in range(index, len(pieces), count):
        path = parts / f"{number:05d}.json"
        if not path.exists():
            save(path, teacher.write(pieces[number], args.max_tokens), indent=None)
            print(f"piece {number + 1} of {len(pieces)}", flush=True)
        found.update({int(i): tokens for i, tokens in json.loads(path.read_text()).items()})
    return found


def assemble(args, teacher: Teacher, targets: Dict[int, List[int]]) -> None:
    """The folder: a copy of the data with the teacher's targets; it appears when it is complete."""
    source, target = teacher.task.cfg.source_lang, teacher.task.cfg.target_lang
    part = args.output.with_name(args.output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(args.data, part)
    pairs = [
        pair for pair in (f"{source}-{target}", f"{target}-{source}") if (part / f"train.{pair}.{target}.bin").exists()
    ]
    prefix = str(part / f"train.{pairs[0]}.{target}")
    builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(teacher.task.target_dictionary))
    for i in range(len(targets)):
        builder.add_item(torch.tensor(targets[i]))
    builder.finalize(f"{prefix}.idx")
    (part / "distilled.json").write_text(json.dumps({"beam": args.beam, "teacher_sha256": sha256(args.path)}) + "\n")
    part.rename(args.output)


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    if args.beam < 1 or args.max_tokens < 1:
        raise FastDiSSError("--beam and --max-tokens must be at least 1")
    shard(args.shard or "1/1")
    if args.output.exists():
        raise FastDiSSError(f"{args.output} exists already")
    args.path = weights_of(args.path)
    teacher = Teacher(args)
    parts = open_parts(args)
    targets = decode(args, teacher, parts)
    if args.shard is None:
        assemble(args, teacher, targets)
        shutil.rmtree(parts)
        print(f"{args.output}: {len(targets)} training targets by the teacher")


def cli_main():
    run_as_command(main, goes_on=True)
