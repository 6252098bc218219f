"""The FS-DFM model for fairseq: few-step discrete flow matching (arXiv 2509.20624), as an encoder-decoder."""

import copy
from typing import Dict, NamedTuple

import torch
from torch import Tensor

from fairseq.models import register_model

from ..diffusion.noise import fold, uniform
from ..errors import FastDiSSError
from ..flow.loss import generalised_kl, teacher_kl
from ..flow.path import Path
from ..flow.ladder import SMALLEST, Steps
from ..flow.sampling import FlowSampler
from ..flow.teacher import TEACHERS
from ..flow.training import Corrupted, FlowPlan, corrupt
from ..modules.embedding import Positions
from ..modules.posterior import Posterior
from ..modules.places import Places
from ..modules.rounding import bar, by_pieces, largest
from ..modules.target import Memory, Target
from ..modules.transformer import LayerConfig
from .base import FewStepModel
from .config import FSDFM_ARCHITECTURES, FSDFMConfig, architecture_config, check_probability

#: Prefix of the moving average's weights in checkpoints.
TEACHER = "teacher."


class FlowOutput(NamedTuple):
    """What the criterion needs: ``flow_loss`` and ``teacher_loss`` (B, T), zero where the position has the other one
    or none; ``movable`` (B, T), positions that have a loss; ``correct`` (B, T), whether the likeliest word is the
    target; ``length_loss`` (B,); the ``steps``."""

    flow_loss: Tensor
    teacher_loss: Tensor
    movable: Tensor
    correct: Tensor
    length_loss: Tensor
    steps: Steps


class FSDFMModel(FewStepModel):
    """Discrete flow matching on target tokens, conditioned on an encoded source.

    With ``step_aware`` it holds a moving average of itself, the ``teacher``, which is also what decodes.
    """

    presets = {"decoding_solver": FlowSampler.solver}

    def __init__(self, cfg: FSDFMConfig, source_dictionary, target_dictionary):
        check_probability("teacher_decay", cfg.teacher_decay)
        super().__init__(cfg, source_dictionary, target_dictionary)
        self.eos, self.bos = target_dictionary.eos(), target_dictionary.bos()
        never = (self.bos, self.padding_idx, self.eos)
        self.register_buffer("bar", bar(len(target_dictionary), never), persistent=False)
        # <s> stands in no target, so it can be the mask
        words = target_dictionary.nspecial, len(target_dictionary)
        try:
            self.process = Path(str(cfg.noise_source), *words, mask=self.bos)
        except ValueError as error:
            raise FastDiSSError(str(error)) from None
        self.teacher = None
        if cfg.step_aware:
            self.teacher = copy.deepcopy(self).requires_grad_(False)

    def build_denoiser(self, layer: LayerConfig, positions: Positions) -> Posterior:
        return Posterior(layer, self.cfg.decoder_layers, self.cfg.latent_dim, positions)

    # The moving average

    @property
    def deployed(self) -> "FSDFMModel":
        return self if self.teacher is None else self.teacher

    def drop_teacher(self) -> None:
        """Become a model for decoding: loading a checkpoint then takes the moving average, where it has one."""
        self.teacher = None

    def train(self, mode: bool = True):
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @torch.no_grad()
    def after_update(self) -> None:
        if self.teacher is not None:
            own = dict(self.named_parameters())
            for name, average in self.teacher.named_parameters():
                average.lerp_(own[name], 1 - self.cfg.teacher_decay)

    def upgrade_state_dict(self, state_dict):
        """Fit a checkpoint of either stage to this model; called by ``load_state_dict``."""
        super().upgrade_state_dict(state_dict)
        averaged = any(key.startswith(TEACHER) for key in state_dict)
        if self.teacher is None:
            averages = averaged_weights(state_dict)
            state_dict.clear()
            state_dict.update(averages)
        elif not averaged:
            state_dict.update({TEACHER + key: value.clone() for key, value in list(state_dict.items())})

    # Evaluations

    def told_step(self, steps: int) -> float:
        """The step size that the network is told where K ``steps`` are taken."""
        return 1 / steps if self.cfg.step_aware else SMALLEST

    def predict(self, x: Tensor, t: Tensor, h: Tensor, target: Target, memory: Memory) -> Tensor:
        """One network evaluation for tokens x (B, T), t and h (B, 1) or (1, 1); see :class:`Posterior`."""
        with self.precision(x.device):
            return self.denoiser(self.embedding(x), t, h, target, memory)

    def logits(self, states: Tensor, table: Tensor) -> Tensor:
        """Logits (N, V) float32 of :meth:`predict`'s vectors (N, D); table: :meth:`table`.  <s>, </s> and padding
        are no words."""
        return torch.addmm(self.bar.to(table.dtype), states.to(table.dtype), table.T).float()

    def movable(self, target: Tensor) -> Tensor:
        """True at the positions of words: neither padding nor the end of a sentence ever jumps."""
        return target.ne(self.padding_idx) & target.ne(self.eos)

    # Training

    def forward(self, src_tokens: Tensor, target: Tensor, plan: FlowPlan) -> FlowOutput:
        """One training step; the only entry, so that data parallel sees every gradient.

        Args:
            src_tokens: (B, S) ids.
            target: (B, T) ids with padding on the right, at most ``max_target_positions`` long.
        """
        mask, movable = target.ne(self.padding_idx), self.movable(target)
        seen = corrupt(plan, target, movable, self.process)
        large = movable & seen.steps.large.unsqueeze(1)
        # Here the host waits for the device, before there is work; later only for how many words the teacher moves.
        flows, taught, rows = Places.of(movable & ~large), Places.of(large), seen.steps.large.nonzero().squeeze(1)
        wanted = self._wanted(seen, src_tokens, mask, movable, rows, plan)
        source = self.encode(src_tokens)
        states = self.predict(seen.x_t, *seen.steps, self.denoiser.target(mask), source.memory)
        flow, correct = self._flow_loss(states, seen, target, flows)
        return FlowOutput(
            flows.put(flow),
            taught.put(self._teacher_loss(taught.take(states), wanted)),
            movable,
            flows.put(correct),
            self.length.loss(source.length_logits, source.lengths, mask.sum(1)),
            seen.steps,
        )

    def _flow_loss(self, states, seen: Corrupted, target, where: Places):
        """Stage A's loss (N,) there, and whether the likeliest word is the target."""
        table = self.table()

        def losses(states, x_t, x_1, t):
            log_probs = self.logits(states, table).log_softmax(-1)
            here, goal = log_probs.gather(1, torch.stack((x_t, x_1), dim=1)).unbind(1)
            return generalised_kl(here, goal, x_t == x_1, t), largest(log_probs)[1] == x_1

        others = (seen.x_t, target, seen.steps.t.expand_as(seen.x_t))
        return by_pieces(losses, *map(where.take, (states, *others)))

    def _wanted(self, seen: Corrupted, src_tokens, mask, movable, rows, plan: FlowPlan) -> Tensor:
        """The teacher's combined prediction (N, D) at the words of the sentences ``rows``, those with large steps."""
        if len(rows) == 0:
            return torch.zeros(0, self.cfg.latent_dim, device=rows.device)
        part = Corrupted(seen.x_t[rows], Steps(*(step[rows] for step in seen.steps)), seen.keys[rows])
        words = Places.of(movable[rows])
        return words.take(self.teacher.combined(part, src_tokens[rows], mask[rows], words, plan))

    def _teacher_loss(self, states: Tensor, wanted: Tensor) -> Tensor:
        """KL (N,) from the teacher's prediction to the student's, both (N, D)."""
        if len(wanted) == 0:
            return wanted.new_zeros(0)
        table, its_table = self.table(), self.teacher.table()

        def loss(found, wanted):
            return (teacher_kl(self.logits(wanted, its_table), self.logits(found, table)),)

        return by_pieces(loss, states, wanted)[0]

    @torch.no_grad()
    def combined(self, seen: Corrupted, src_tokens, mask, words: Places, plan: FlowPlan) -> Tensor:
        """The prediction for steps of size h from evaluations at h / 2, (B, T, D); see :mod:`..flow.teacher`.
        Logits are linear in the vectors, so these are combined instead."""
        shared, memory, table = self.denoiser.target(mask), self.encode(src_tokens).memory, self.table()
        sampler = FlowSampler(self.process, temperature=plan.temperature)

        def look(x, t, h):
            return self.predict(x, t, h, shared, memory)

        def move(states, x, t, h, number):
            keys = fold(seen.keys, "teacher", number)
            draws = uniform(fold(keys, "leave")), uniform(fold(keys, "word"))
            step = lambda states, *others: (sampler.move(self.logits(states, table), *others),)
            others = (x, *draws, t.expand_as(x), h.expand_as(x))
            return words.replace(x, by_pieces(step, *map(words.take, (states, *others)))[0])

        return TEACHERS[plan.teacher](look, move, seen.x_t, *seen.steps)


def averaged_weights(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The weights that decode: a checkpoint's moving average, where it holds one."""
    averages = {key[len(TEACHER) :]: value for key, value in state_dict.items() if key.startswith(TEACHER)}
    return averages or dict(state_dict)


for _name in FSDFM_ARCHITECTURES:
    register_model(_name, dataclass=architecture_config(_name))(type(_name, (FSDFMModel,), {}))
