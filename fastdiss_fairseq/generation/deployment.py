"""Changing a trained model for fast decoding."""

from ..compat import FastDiSSError
from ..models.base import FewStepModel
from ..models.fastdiss import FastDiSSModel
from .candidates import Special
from .config import MODEL_OPTIONS


def prepare(model: FewStepModel, cfg, special: Special) -> None:
    """Change a model as the options of decoding ask for; again does no harm.

    Raises:
        FastDiSSError: options that exclude each other, or ask for what the model cannot do.
    """
    for name in ("decoding_int8", "decoding_onnx"):
        others = [other for other in MODEL_OPTIONS if other != name and getattr(cfg, other)]
        if getattr(cfg, name) and others:
            raise FastDiSSError(f"{flag(name)} excludes {', '.join(map(flag, others))}")
    if cfg.decoding_int8:
        model.quantise()
    if cfg.decoding_bf16:
        model.to_bfloat16()
    if cfg.decoding_compile:
        model.compile_step()
    if cfg.decoding_onnx:
        if not isinstance(model, FastDiSSModel):
            raise FastDiSSError("--decoding-onnx is for FastDiSS, not for FS-DFM")
        model.use_onnx(list(special))


def flag(name: str) -> str:
    """An option's name on the command line."""
    return f"--{name.replace('_', '-')}"
