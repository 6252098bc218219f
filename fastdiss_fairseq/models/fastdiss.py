"""The FastDiSS model for fairseq: continuous diffusion."""

from math import inf
from typing import NamedTuple, Sequence

from torch import Tensor

from fairseq.models import register_model

from ..compat import casts_for_gradients, kept_casts
from ..diffusion.process import Process
from ..diffusion.sampling import MASK_PREDICT, RENOISE
from ..diffusion.training import TrainingPass, TrainingPlan, training_pass
from ..errors import FastDiSSError
from ..modules.denoiser import Denoiser
from ..modules.embedding import Positions
from .onnx import OnnxRuntime
from ..modules.places import Places
from ..modules.rounding import Reading, Vocabulary, mean_rows, nearest_token, read, rounding_loss
from ..modules.target import Memory, Target
from ..modules.transformer import LayerConfig
from .base import FewStepModel
from .config import FASTDISS_ARCHITECTURES, FastDiSSConfig, architecture_config, trained_with


class TrainingOutput(NamedTuple):
    """What the criterion needs: ``z_0`` (B, T, D); the training pass; how many sentences were given an estimate;
    ``rounding_loss`` and ``correct`` (B, T), zero at padding, at the estimate (anchor) or at z_0 (exact); ``length_loss``
    (B,)."""

    z_0: Tensor
    training: TrainingPass
    conditioned: int
    rounding_loss: Tensor
    correct: Tensor
    length_loss: Tensor


class TimeInputs(NamedTuple):
    """What an evaluation needs of times (...): the ``input_scale`` (..., 1) of z and their ``features`` (..., d)."""

    input_scale: Tensor
    features: Tensor

    def at(self, index: Tensor) -> "TimeInputs":
        """Of times (n,), those that an index of any shape says."""
        return TimeInputs(self.input_scale[index], self.features[index])


class FastDiSSModel(FewStepModel):
    """Continuous diffusion on target embeddings, conditioned on an encoded source.

    Raises:
        FastDiSSError: a noise factor that is no positive number.
    """

    def __init__(self, cfg: FastDiSSConfig, source_dictionary, target_dictionary):
        if not 0 < cfg.noise_factor < inf:
            raise FastDiSSError(f"--noise-factor must be positive and finite, not {cfg.noise_factor}")
        super().__init__(cfg, source_dictionary, target_dictionary)
        self.process = Process(str(cfg.noise_schedule), cfg.noise_factor)
        self.presets = {  # mask_predict needs to have met known tokens beside unknown ones, self-conditioning estimates
            "decoding_solver": RENOISE if trained_with(cfg, "mixed_times") == 0 else MASK_PREDICT,
            "decoding_self_conditioning": "none" if trained_with(cfg, "self_conditioning_prob") == 0 else "previous",
        }

    def build_denoiser(self, layer: LayerConfig, positions: Positions) -> Denoiser:
        return Denoiser(layer, self.cfg.decoder_layers, self.cfg.latent_dim, positions)

    def time_inputs(self, t: Tensor) -> TimeInputs:
        """What :meth:`denoise` needs of times t in [0, 1], of any shape."""
        with self.precision(t.device):
            return TimeInputs(self.process.input_scale(t).unsqueeze(-1), self.denoiser.time(t))

    def denoise(self, z: Tensor, times: TimeInputs, z_bar: Tensor, target: Target, memory: Memory) -> Tensor:
        """One network evaluation; shapes as in :class:`Denoiser`, z at its natural scale, times (B, 1), (B, T) or
        (1, 1)."""
        z = z * times.input_scale
        if self.runtime is not None:
            return self.runtime.denoise(z, times.features, z_bar, target, memory)
        with self.precision(z.device):
            return self.denoiser(z, times.features, z_bar, target, memory)

    def use_onnx(self, never: Sequence[int]) -> None:
        """Evaluate the networks with ONNX Runtime from now on, for decoding on a CPU; ``never``: ids that are not read."""
        self.autocasts = False
        if self.runtime is None:
            self.runtime = OnnxRuntime(self, never)

    def read(self, states: Tensor, vocabulary: Vocabulary, mean: bool) -> Reading:
        """:func:`..modules.rounding.read`."""
        if self.runtime is not None:
            return self.runtime.read(states, mean)
        return read(states, vocabulary, mean)

    def refine(self, estimate: Tensor, real: Places, how: str) -> Tensor:
        """What self-conditioning gets in training for network estimates (n, T, D): the same (``direct``), or
        ``expected`` token embeddings, zero at padding."""
        if how == "direct":
            return estimate
        return real.put(mean_rows(*self.rounded(real.take(estimate))).type_as(estimate))

    def forward(self, src_tokens: Tensor, target: Tensor, plan: TrainingPlan) -> TrainingOutput:
        """One training step; the only entry, so that data parallel sees every gradient.

        Args:
            src_tokens: (B, S) ids.
            target: (B, T) ids with padding on the right, at most ``max_target_positions`` long.
        """
        mask, rows = target.ne(self.padding_idx), plan.rows()
        # the host waits for the device here, before there is work, and not again
        real, looked_at, conditioned = (
            Places.of(mask),
            Places.of(mask[rows.looked_at]),
            Places.of(mask[rows.conditioned]),
        )
        source = self.encode(src_tokens)
        z_0, shared = self.embedding(target), self.denoiser.target(mask)

        def denoise(z, t, z_bar, rows):
            casts_for_gradients()
            if rows is None:
                return self.denoise(z, self.time_inputs(t), z_bar, shared, source.memory)
            return self.denoise(z, self.time_inputs(t), z_bar, shared.select(rows), source.memory.select(rows))

        def is_correct(estimate):
            found = nearest_token(*self.rounded(looked_at.take(estimate)))
            return looked_at.put(found == looked_at.take(target[rows.looked_at]))

        def refine(estimate):
            return self.refine(estimate, conditioned, plan.estimate)

        with kept_casts():
            training = training_pass(denoise, is_correct, z_0, mask, rows, plan, self.process, refine)
        states, table = self.rounded(real.take(training.estimate if plan.rounding == "anchor" else z_0))
        rounding = rounding_loss(states, table, real.take(target), plan.label_smoothing)
        return TrainingOutput(
            z_0,
            training,
            len(rows.conditioned),
            real.put(rounding.loss),
            real.put(rounding.correct),
            self.length.loss(source.length_logits, source.lengths, mask.sum(1)),
        )


for _name in FASTDISS_ARCHITECTURES:
    register_model(_name, dataclass=architecture_config(_name))(type(_name, (FastDiSSModel,), {}))
