"""The FastDiSS criterion: diffusion, rounding and length losses, with SCP and MANS."""

import logging
from dataclasses import dataclass, field, fields
from typing import Dict, List

import torch
from omegaconf import II
from torch import Tensor

from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics

from ..diffusion.noise_scaling import PhaseTable
from ..diffusion.perturbation import COUPLINGS, RULES, Perturbation
from ..diffusion.training import TrainingPlan
from ..errors import FastDiSSError, flag
from ..models.base import cut
from ..models.config import check_not_negative, check_probability, option
from ..models.fastdiss import FastDiSSModel
from .base import FewStepLoss, LossConfig, total


logger = logging.getLogger(__name__)

#: Bins of equal width in t for ``--log-noise-levels``.
NOISE_LEVELS = 10


@dataclass
class FastDiSSLossConfig(LossConfig):
    """How the model is trained.  What decoding goes by where it is told nothing: ``mixed_times`` and
    ``self_conditioning_prob``, at 0 (:class:`..models.fastdiss.FastDiSSModel`)."""

    self_conditioning_prob: float = option(
        TrainingPlan.self_conditioning, "probability that a sentence trains with an estimate"
    )
    self_conditioning_estimate: ChoiceEnum(["direct", "expected"]) = option(
        TrainingPlan.estimate, "what self-conditioning gets in training; see --decoding-estimate"
    )
    mixed_times: float = option(
        TrainingPlan.mixed_times,
        "probability that a sentence trains with tokens that are known (t = 0) or unknown (t = 1), which "
        "--decoding-solver mask_predict needs; 0: all tokens of a sentence share one t",
    )
    no_scp: bool = option(False, "switch off SCP, self-conditioning perturbation")
    scp_rule: ChoiceEnum(list(RULES)) = option(
        Perturbation.rule,
        "how far the estimate's time t' lies behind t: one step of a K-step grid, U(t, 1), or constant gamma",
    )
    scp_coupling: ChoiceEnum(list(COUPLINGS)) = option(
        Perturbation.coupling, "the estimate's input: z_t noised further, or fresh noise on z_0"
    )
    scp_hops: int = option(Perturbation.hops, "1, or 2: the estimate at t' is conditioned on one from t'' > t'")
    scp_budgets: List[int] = field(
        default_factory=lambda: list(Perturbation.budgets),
        metadata={"help": "step counts K that the rule 'budget' draws from"},
    )
    scp_gamma: float = option(Perturbation.gamma, "gamma of the rule 'gamma'")
    scp_lambda: float = option(Perturbation.shrink, "lambda of the rule 'gamma'")
    no_mans: bool = option(False, "switch off MANS, model-aware noise scaling")
    mans_scale: List[float] = field(default_factory=lambda: [2.0], metadata={"help": "MANS scale beta in each phase"})
    mans_phase: List[float] = field(
        default_factory=list,
        metadata={"help": "where the second and later phases begin, in updates; up to 1: fractions of --max-update"},
    )
    mans_start: float = option(0.75, "where the first MANS phase begins (before: beta = 1); as --mans-phase")
    diffusion_loss_weight: float = option(0.1, "weight of the diffusion loss, ||estimate - z_0||^2 / D")
    rounding: ChoiceEnum(["anchor", "exact"]) = option(
        TrainingPlan.rounding, "the rounding loss' softmax is taken at the estimate (anchor) or at z_0 (exact)"
    )
    label_smoothing: float = option(TrainingPlan.label_smoothing, "label smoothing of the rounding loss")
    log_noise_levels: bool = option(
        False, f"log losses, accuracy and what MANS does in {NOISE_LEVELS} bins of t (scripts/plot_training.py)"
    )
    max_update: int = II("optimization.max_update")


@register_criterion("fastdiss_loss", dataclass=FastDiSSLossConfig)
class FastDiSSLoss(FewStepLoss):
    """L = weight L_diffusion + L_round + factor L_length, a mean over target tokens (method, section 1).

    Raises:
        FastDiSSError: an option out of its range.
    """

    trains = FastDiSSModel
    measures = {
        **dict.fromkeys(("loss", "diffusion_loss", "rounding_loss", "length_loss"), False),
        "rounding_accuracy": True,
    }

    def __init__(self, cfg: FastDiSSLossConfig, task):
        super().__init__(cfg, task)
        for name in ("self_conditioning_prob", "mixed_times", "label_smoothing"):
            check_probability(name, getattr(cfg, name))
        check_not_negative("diffusion_loss_weight", cfg.diffusion_loss_weight)
        try:
            self.scp = None if cfg.no_scp else perturbation_from(cfg)
            self.phases = None if cfg.no_mans else phases_from(cfg)
        except ValueError as error:
            raise FastDiSSError(str(error)) from None
        if self.phases:
            logger.info(f"MANS: {self.phases}")
        for remark in remarks(cfg):
            logger.warning(remark)

    def plan(self, ids: Tensor, num_updates: int, training: bool = True) -> TrainingPlan:
        """The plan of one batch: sentence ``ids`` (B,) and the update fix every random number.
        Validation is always that of update 0 and without MANS, so its losses can be compared."""
        num_updates = num_updates if training else 0
        return TrainingPlan(
            key=self.key(ids, num_updates),
            self_conditioning=self.cfg.self_conditioning_prob,
            scp=self.scp,
            beta=self.phases(num_updates) if self.phases and training else 1.0,
            rounding=str(self.cfg.rounding),
            label_smoothing=self.cfg.label_smoothing,
            mixed_times=self.cfg.mixed_times,
            estimate=str(self.cfg.self_conditioning_estimate),
        )

    def forward(self, model, sample, reduce=True):
        """As fairseq wants it: :meth:`.FewStepLoss.summed`."""
        limit = model.max_positions()[1]
        target = cut(sample["target"], limit)
        mask = target.ne(self.padding_idx)
        plan = self.plan(sample["id"], model.num_updates, model.training)
        output = model(sample["net_input"]["src_tokens"], target, plan)
        each = self.losses_of_tokens(output)
        losses = {name: (value * mask).sum() for name, value in each.items()}
        loss = (
            self.cfg.diffusion_loss_weight * losses["diffusion_loss"]
            + losses["rounding_loss"]
            + self.cfg.length_loss_factor * losses["length_loss"]
        )
        statistics = self.statistics(output, mask)
        if self.cfg.log_noise_levels:
            statistics.update(self.by_noise_level(output, mask, each))
        return self.summed(loss, losses, statistics, mask, sample)

    @staticmethod
    def losses_of_tokens(output) -> Dict[str, Tensor]:
        """The three losses of each token, (B, T) or (B, 1).  A sentence's length loss counts once for
        each of its tokens, so that all three have the same denominator."""
        return {
            "diffusion_loss": (output.training.estimate - output.z_0).pow(2).mean(-1),
            "rounding_loss": output.rounding_loss,
            "length_loss": output.length_loss.unsqueeze(1),
        }

    @staticmethod
    @torch.no_grad()
    def statistics(output, mask: Tensor) -> Dict[str, Tensor]:
        """Sums that show the method at work; see :meth:`reduce_metrics`."""
        run = output.training
        token_t = run.token_t.expand_as(mask)
        return {
            "correct": output.correct.sum(),
            "t": (run.t * mask).sum(),
            "token_t": (token_t * mask).sum(),
            "moved": mask.new_zeros((), dtype=torch.long) if run.moved is None else run.moved.sum(),
            "conditioned": output.conditioned,
            "gap": run.gap,
        }

    @staticmethod
    @torch.no_grad()
    def by_noise_level(output, mask: Tensor, each: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Sums over the tokens of each noise level, (NOISE_LEVELS,): by the token's own t_i, and what
        MANS moved by the sentence's t."""
        run = output.training
        moved = mask.new_zeros(mask.shape) if run.moved is None else run.moved
        own, common = (noise_level(t.expand_as(mask)) for t in (run.token_t, run.t))
        summed = lambda level, value: mask.new_zeros(NOISE_LEVELS, dtype=torch.float).index_add(
            0, level.flatten(), (value * mask).flatten().float()
        )
        return {
            "level_tokens": summed(own, mask),
            "level_correct": summed(own, output.correct),
            "level_diffusion_loss": summed(own, each["diffusion_loss"]),
            "level_rounding_loss": summed(own, each["rounding_loss"]),
            "level_drawn": summed(common, mask),
            "level_moved": summed(common, moved),
        }

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log means: losses and accuracy a token, t and the t_i of MANS, and SCP's t' - t."""
        sums = total(logging_outputs)
        tokens, sentences = sums["ntokens"], sums["nsentences"]
        metrics.log_scalar("loss", sums["loss"] / tokens, tokens, round=3)
        for name in ("diffusion_loss", "rounding_loss", "length_loss"):
            metrics.log_scalar(name, sums[name] / tokens, tokens, round=3)
        metrics.log_scalar("rounding_accuracy", 100 * sums["correct"] / tokens, tokens, round=2)
        metrics.log_scalar("t", sums["t"] / tokens, tokens, round=3)
        metrics.log_scalar("mans_t", sums["token_t"] / tokens, tokens, round=3)
        metrics.log_scalar("mans_moved", 100 * sums["moved"] / tokens, tokens, round=2)
        conditioned = sums["conditioned"]
        metrics.log_scalar("self_conditioned", 100 * conditioned / sentences, sentences, round=1)
        metrics.log_scalar("scp_gap", sums["gap"] / max(conditioned, 1), conditioned, round=3)
        if any("level_tokens" in log for log in logging_outputs):
            names = [name for name in logging_outputs[0] if name.startswith("level_")]
            log_noise_levels({name: sum(log[name] for log in logging_outputs).tolist() for name in names})


def noise_level(t: Tensor) -> Tensor:
    """The bin of each t in [0, 1], int64 of the same shape."""
    return (t * NOISE_LEVELS).long().clamp(max=NOISE_LEVELS - 1)


def log_noise_levels(sums: Dict[str, List[float]]) -> None:
    """Log for each bin k, t in [k, k + 1) / NOISE_LEVELS: ``share_tk`` (percent of tokens with t_i
    there), ``accuracy_tk``, ``diffusion_loss_tk``, ``rounding_loss_tk``, and ``moved_tk`` (percent of the
    tokens drawn at t there that MANS moved)."""
    tokens, drawn = sums["level_tokens"], sums["level_drawn"]
    for k in range(NOISE_LEVELS):
        mean = lambda name, counts: sums[f"level_{name}"][k] / max(counts[k], 1)
        metrics.log_scalar(f"share_t{k}", 100 * tokens[k] / sum(tokens), sum(tokens), round=2)
        metrics.log_scalar(f"accuracy_t{k}", 100 * mean("correct", tokens), tokens[k], round=2)
        for name in ("diffusion_loss", "rounding_loss"):
            metrics.log_scalar(f"{name}_t{k}", mean(name, tokens), tokens[k], round=3)
        metrics.log_scalar(f"moved_t{k}", 100 * mean("moved", drawn), drawn[k], round=2)


def remarks(cfg: FastDiSSLossConfig) -> List[str]:
    """What probabilities at their ends take from a training, and options of what is switched off."""
    found, usual = [], FastDiSSLossConfig()
    for part in ("scp", "mans"):
        options = [f.name for f in fields(usual) if f.name.startswith(f"{part}_")]
        given = [name for name in options if str(getattr(cfg, name)) != str(getattr(usual, name))]
        if getattr(cfg, f"no_{part}") and given:
            names = ", ".join(flag(name) for name in given)
            found.append(f"--no-{part}: no effect on this training: {names}")
    if cfg.self_conditioning_prob == 1:
        found.append("--self-conditioning-prob 1: decoding begins without an estimate, which no sentence trains then")
    if cfg.self_conditioning_prob == 0 and not cfg.no_scp:
        found.append("--self-conditioning-prob 0: there are no estimates, so SCP changes nothing")
    if cfg.mixed_times == 1 and not cfg.no_mans:
        found.append("--mixed-times 1: tokens are known or unknown and stay so, so MANS changes nothing")
    return found


def perturbation_from(cfg: FastDiSSLossConfig) -> Perturbation:
    """SCP as the options describe it."""
    return Perturbation(
        rule=str(cfg.scp_rule),
        coupling=str(cfg.scp_coupling),
        hops=cfg.scp_hops,
        budgets=tuple(cfg.scp_budgets),
        gamma=cfg.scp_gamma,
        shrink=cfg.scp_lambda,
    )


def phases_from(cfg: FastDiSSLossConfig) -> PhaseTable:
    """MANS' phase table as the options describe it."""
    return PhaseTable(cfg.mans_scale, cfg.mans_phase, cfg.mans_start, cfg.max_update)
