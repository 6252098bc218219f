"""Changing a trained model for fast decoding."""

from dataclasses import dataclass
from typing import FrozenSet, Sequence

from ..errors import FastDiSSError, flag
from ..models.base import FewStepModel
from ..models.fastdiss import FastDiSSModel
from .config import MODEL_OPTIONS


@dataclass(frozen=True)
class Deployment:
    """How a model is changed: ``chosen`` of :data:`~.config.MODEL_OPTIONS`.

    Raises:
        FastDiSSError: options that exclude each other.
    """

    chosen: FrozenSet[str] = frozenset()

    @classmethod
    def of(cls, cfg) -> "Deployment":
        return cls(frozenset(name for name in MODEL_OPTIONS if getattr(cfg, name)))

    def __post_init__(self):
        for name in ("decoding_int8", "decoding_onnx"):
            others = [other for other in MODEL_OPTIONS if other in self.chosen - {name}]
            if name in self.chosen and others:
                raise FastDiSSError(f"{flag(name)} excludes {', '.join(map(flag, others))}")

    def prepare(self, model: FewStepModel, never: Sequence[int]) -> None:
        """Change a model, whose weights must be loaded; again does nothing.

        Args:
            never: ids that are not read.

        Raises:
            FastDiSSError: what the model cannot do, or a model that was changed otherwise before.
        """
        if model.changed_by == self.chosen:
            return
        if model.changed_by:
            before = ", ".join(map(flag, sorted(model.changed_by)))
            raise FastDiSSError(f"the model was changed by {before}, which is not undone or added to: load it anew")
        if "decoding_int8" in self.chosen:
            model.quantise()
        if "decoding_bf16" in self.chosen:
            model.to_bfloat16()
        if "decoding_compile" in self.chosen:
            model.compile_step()
        if "decoding_cuda_graphs" in self.chosen:
            model.use_cuda_graphs()
        if "decoding_onnx" in self.chosen:
            if not isinstance(model, FastDiSSModel):
                raise FastDiSSError("--decoding-onnx is for FastDiSS, not for FS-DFM")
            model.use_onnx(never)
        model.changed_by = self.chosen


UNCHANGED = Deployment()
