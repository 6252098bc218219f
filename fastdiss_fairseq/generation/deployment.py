"""Changing a trained model for fast decoding."""

from dataclasses import dataclass
from typing import Sequence

from ..compat import FastDiSSError
from ..models.base import FewStepModel
from ..models.fastdiss import FastDiSSModel
from .config import MODEL_OPTIONS


@dataclass(frozen=True)
class Deployment:
    """The options that change a model, see :class:`~.config.DecodingConfig`.

    Raises:
        FastDiSSError: options that exclude each other.
    """

    decoding_int8: bool = False
    decoding_bf16: bool = False
    decoding_compile: bool = False
    decoding_onnx: bool = False

    @classmethod
    def of(cls, cfg) -> "Deployment":
        return cls(**{name: getattr(cfg, name) for name in MODEL_OPTIONS})

    def __post_init__(self):
        for name in ("decoding_int8", "decoding_onnx"):
            others = [other for other in MODEL_OPTIONS if other != name and getattr(self, other)]
            if getattr(self, name) and others:
                raise FastDiSSError(f"{flag(name)} excludes {', '.join(map(flag, others))}")

    def prepare(self, model: FewStepModel, never: Sequence[int]) -> None:
        """Change a model, whose weights must be loaded; again does nothing.

        Args:
            never: ids that are not read.

        Raises:
            FastDiSSError: what the model cannot do.
        """
        if model.deployment == self:
            return
        if self.decoding_int8:
            model.quantise()
        if self.decoding_bf16:
            model.to_bfloat16()
        if self.decoding_compile:
            model.compile_step()
        if self.decoding_onnx:
            if not isinstance(model, FastDiSSModel):
                raise FastDiSSError("--decoding-onnx is for FastDiSS, not for FS-DFM")
            model.use_onnx(never)
        model.deployment = self


UNCHANGED = Deployment()


def flag(name: str) -> str:
    """An option's name on the command line."""
    return f"--{name.replace('_', '-')}"
