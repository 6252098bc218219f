"""What both criteria are: options, the key of a batch's random numbers, and sums of losses and of what is logged."""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple, Type

import torch
from omegaconf import II
from torch import Tensor

from fairseq.criterions import FairseqCriterion
from fairseq.dataclass import FairseqDataclass

from ..diffusion.noise import fold
from ..models.base import FewStepModel
from ..models.config import check_not_negative, option


@dataclass
class LossConfig(FairseqDataclass):
    """How a model is trained; nothing here matters for decoding."""

    length_loss_factor: float = option(0.1, "weight of the length loss")
    seed: int = II("common.seed")
    sentence_avg: bool = II("optimization.sentence_avg")


class FewStepLoss(FairseqCriterion):
    """A mean over target tokens, with a length loss.

    Raises:
        FastDiSSError: a negative weight of the length loss.
    """

    #: The kind of model that it trains.
    trains: Type[FewStepModel]
    #: What a checkpoint can be chosen by, and whether more of it is better.
    measures: Dict[str, bool]

    def __init__(self, cfg: LossConfig, task):
        super().__init__(task)
        check_not_negative("length_loss_factor", cfg.length_loss_factor)
        self.cfg = cfg

    @classmethod
    def build_criterion(cls, cfg, task):
        return cls(cfg, task)

    def key(self, ids: Tensor, update: int) -> Tensor:
        """What fixes every random number of sentences ``ids`` (B,) at an update, int64 (B,)."""
        return fold(ids.long(), "training", self.cfg.seed, update)

    def summed(
        self, loss: Tensor, losses: Dict[str, Tensor], statistics: Dict[str, Tensor], mask: Tensor, sample: dict
    ) -> Tuple[Tensor, Any, Dict[str, Any]]:
        """What fairseq wants of a batch: the summed loss, what it is to be divided by (tokens; with --sentence-avg
        sentences), and logs.

        Args:
            losses, statistics: sums that are logged.
            mask: of the target tokens, (B, T).
            sample: the batch, whose targets may be longer; where they are not, its number of tokens is what the host knows
                without waiting for the device.
        """
        tokens = sample["ntokens"] if mask.shape == sample["target"].shape else mask.sum()
        size = len(mask) if self.cfg.sentence_avg else tokens
        logs = {**{name: value.detach() for name, value in losses.items()}, **statistics}
        return loss, size, dict(logs, loss=loss.detach(), ntokens=tokens, sample_size=size, nsentences=len(mask))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def total(logging_outputs: List[Dict[str, Any]]) -> Dict[str, float]:
    """The sum of each number that batches logged, fetched from the device all at once; larger tensors are left out."""
    sums = {name: sum(log.get(name, 0) for log in logging_outputs) for name in logging_outputs[0]}
    fetched = {name: value for name, value in sums.items() if isinstance(value, Tensor)}
    numbers = {name: value.double() for name, value in fetched.items() if value.dim() == 0}
    found = {name: value for name, value in sums.items() if name not in fetched}
    if numbers:
        found.update(zip(numbers, torch.stack(list(numbers.values())).tolist()))
    return found
