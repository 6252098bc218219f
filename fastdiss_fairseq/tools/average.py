"""Average the weights of checkpoints of one training, or take its exponential moving average.

    fastdiss-average runs/both/checkpoint_*_*.pt --last 5 --output runs/both/average.pt
    fastdiss-average runs/both/checkpoint_last.pt --ema --output runs/both/ema.pt

The mean of the last checkpoints by update; ``--ema`` needs a training with ``--store-ema --ema-decay D``
(fairseq's options).  The output is a checkpoint for fairseq-generate and all commands of this package, without
optimizer state.  It works for fairseq's own models too.
"""

import argparse
import logging
from pathlib import Path
from typing import Dict, List

from torch import Tensor

from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from ..errors import FastDiSSError
from ..loading import weights_of
from . import checkpoints
from .command import run_as_command

logger = logging.getLogger(__name__)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-average", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--last", type=int, metavar="N", help="of the checkpoints given the N with most updates")
    parser.add_argument("--ema", action="store_true", help="the moving averages of the checkpoints, not their weights")
    return parser


def updates(state: dict) -> int:
    return state["optimizer_history"][-1]["num_updates"]


def weights(state: dict, path: Path, ema: bool) -> Dict[str, Tensor]:
    """The weights of a checkpoint, or their moving average.

    Raises:
        FastDiSSError: no moving average in the checkpoint.
    """
    if not ema:
        return state["model"]
    if "ema" not in state["extra_state"]:
        raise FastDiSSError(f"{path} holds no moving average: it was trained without --store-ema")
    return state["extra_state"]["ema"]


def mean(found: List[Dict[str, Tensor]]) -> Dict[str, Tensor]:
    """The mean of each floating-point weight, computed in float64; others are the last one's.  Names of one tensor stay so.

    Raises:
        FastDiSSError: weights of other names or shapes.
    """
    shapes = [{name: value.shape for name, value in one.items()} for one in found]
    if any(other != shapes[-1] for other in shapes):
        raise FastDiSSError("the checkpoints are not of one model: names or shapes of weights differ")

    means: Dict[tuple, Tensor] = {}

    def one(name: str, last: Tensor) -> Tensor:
        if not last.is_floating_point():
            return last
        same = tuple((weights[name].data_ptr(), weights[name].shape, weights[name].stride()) for weights in found)
        if same not in means:
            means[same] = (sum(weights[name].double() for weights in found) / len(found)).to(last.dtype)
        return means[same]

    return {name: one(name, last) for name, last in found[-1].items()}


def average(paths: List[Path], output: Path, last: int = 0, ema: bool = False) -> List[Path]:
    """Write the average; returns the checkpoints it is of, by updates.

    Raises:
        FastDiSSError: a checkpoint missing, of another model, or without a moving average.
    """
    chosen = sorted(map(weights_of, paths), key=lambda path: updates(load_checkpoint_to_cpu(str(path))))[-last:]
    found, trainings = [], set()
    for path in chosen:  # one after the other: the optimizer's state is twice as large as the weights
        state = load_checkpoint_to_cpu(str(path))
        found.append(weights(state, path, ema))
        trainings.add((state["cfg"]["common"]["seed"], state["cfg"]["checkpoint"]["save_dir"]))
    if len(trainings) > 1:
        known = "; ".join(f"seed {seed}, {folder}" for seed, folder in sorted(trainings))
        logger.warning(f"an average of several trainings ({known}) is rarely a good model")
    state["model"] = mean(found)
    state["last_optimizer_state"] = None
    state["extra_state"].pop("ema", None)
    checkpoints.write(state, output)
    return chosen


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    if args.last is not None and args.last < 1:
        raise FastDiSSError(f"--last must be at least 1, not {args.last}")
    chosen = average(args.checkpoints, args.output, args.last or 0, args.ema)
    print(f"{args.output}: average of {', '.join(path.name for path in chosen)}")


def cli_main():
    run_as_command(main)
