"""The FS-DFM criterion: flow matching, and with step-aware models learning from the teacher."""

from dataclasses import dataclass
from math import inf
from typing import Dict

import torch
from torch import Tensor

from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics

from ..errors import FastDiSSError
from ..flow.teacher import TEACHERS
from ..flow.training import FlowPlan
from ..models.base import cut
from ..models.config import check_not_negative, option
from ..models.fsdfm import FSDFMModel
from .base import FewStepLoss, LossConfig, total


@dataclass
class FSDFMLossConfig(LossConfig):
    """The options of FS-DFM's training."""

    teacher: ChoiceEnum(list(TEACHERS)) = option(
        FlowPlan.teacher, "with --step-aware: the teacher looks four times (rk4) or twice (heun)"
    )
    teacher_temperature: float = option(
        FlowPlan.temperature,
        "with --step-aware: of the words that the teacher jumps to; 0: its likeliest, 1: drawn from its prediction",
    )
    step_size_tilt: float = option(
        FlowPlan.tilt, "with --step-aware: P(h = 2^-k) is proportional to 2^(tilt k), k = 0, ..., 10; 0: all alike"
    )


@register_criterion("fsdfm_loss", dataclass=FSDFMLossConfig)
class FSDFMLoss(FewStepLoss):
    """L = L_flow + L_teacher + factor L_length, a mean over target tokens (method, section 7).

    Raises:
        FastDiSSError: a negative temperature or weight, or an infinite tilt.
    """

    trains = FSDFMModel
    measures = {**dict.fromkeys(("loss", "flow_loss", "teacher_loss", "length_loss"), False), "accuracy": True}

    def __init__(self, cfg: FSDFMLossConfig, task):
        super().__init__(cfg, task)
        check_not_negative("teacher_temperature", cfg.teacher_temperature)
        if not -inf < cfg.step_size_tilt < inf:
            raise FastDiSSError(f"--step-size-tilt must be a finite number, not {cfg.step_size_tilt}")

    def plan(self, ids: Tensor, model) -> FlowPlan:
        """The plan of one batch: sentence ``ids`` (B,) and the update fix every random number.  Validation is always
        that of update 0 and without a teacher, so its losses can be compared."""
        update = model.num_updates if model.training else 0
        return FlowPlan(
            key=self.key(ids, update),
            step_aware=model.teacher is not None and model.training,
            tilt=self.cfg.step_size_tilt,
            teacher=str(self.cfg.teacher),
            temperature=self.cfg.teacher_temperature,
        )

    def forward(self, model, sample, reduce=True):
        """As fairseq wants it: :meth:`.FewStepLoss.summed`."""
        target = cut(sample["target"], model.max_positions()[1])
        net = model if model.training else model.deployed
        output = net(sample["net_input"]["src_tokens"], target, self.plan(sample["id"], net))
        mask = target.ne(self.padding_idx)
        losses = {
            "flow_loss": output.flow_loss.sum(),
            "teacher_loss": output.teacher_loss.sum(),
            "length_loss": (output.length_loss.unsqueeze(1) * mask).sum(),  # the same denominator as the others
        }
        loss = losses["flow_loss"] + losses["teacher_loss"] + self.cfg.length_loss_factor * losses["length_loss"]
        return self.summed(loss, losses, self.statistics(output), mask, sample)

    @staticmethod
    @torch.no_grad()
    def statistics(output) -> Dict[str, Tensor]:
        """Sums that show the method at work; see :meth:`reduce_metrics`."""
        large = output.steps.large.unsqueeze(1) & output.movable
        return {
            "correct": output.correct.sum(),
            "large": large.sum(),
            "words": output.movable.sum(),
            "t": (output.steps.t * output.movable).sum(),
        }

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log means: losses a token of the kind, accuracy of the flow's words, t, and the share of large steps."""
        sums = total(logging_outputs)
        tokens, words, large = sums["ntokens"], sums["words"], sums["large"]
        flow = max(words - large, 1)
        metrics.log_scalar("loss", sums["loss"] / tokens, tokens, round=3)
        metrics.log_scalar("length_loss", sums["length_loss"] / tokens, tokens, round=3)
        metrics.log_scalar("flow_loss", sums["flow_loss"] / flow, flow, round=3)
        metrics.log_scalar("accuracy", 100 * sums["correct"] / flow, flow, round=2)
        metrics.log_scalar("t", sums["t"] / max(words, 1), words, round=3)
        metrics.log_scalar("teacher_loss", sums["teacher_loss"] / max(large, 1), large, round=3)
        metrics.log_scalar("large_steps", 100 * large / max(words, 1), words, round=2)
