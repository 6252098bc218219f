"""The model's options and the table of architectures."""

from dataclasses import dataclass, field, make_dataclass
from typing import Dict, Optional, Tuple, Type

from omegaconf import DictConfig, II

from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from ..diffusion.schedules import SCHEDULES
from ..errors import FastDiSSError, flag
from ..flow.path import SOURCES


def option(default, text: str):
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


def check_probability(name: str, value: float) -> None:
    """Raise FastDiSSError unless the option's value lies from 0 to 1."""
    if not 0 <= value <= 1:
        raise FastDiSSError(f"{flag(name)} must be a probability from 0 to 1, not {value}")


def check_not_negative(name: str, value: float) -> None:
    """Raise FastDiSSError unless the option's value is a number of at least 0."""
    if not 0 <= value < float("inf"):
        raise FastDiSSError(f"{flag(name)} must be at least 0, not {value}")


def trained_with(cfg, name: str):
    """An option of the criterion that stands beside the model's options in fairseq's configuration, of a training or as
    a checkpoint keeps it; None where there is none."""
    root = cfg._get_parent() if isinstance(cfg, DictConfig) else None
    criterion = root["criterion"] if root is not None and "criterion" in root else None
    return criterion[name] if criterion is not None and name in criterion else None


@dataclass
class ModelConfig(FairseqDataclass):
    """What all models have; the defaults are transformer-base's sizes.  Model options are what training and
    decoding must agree on."""

    encoder_embed_dim: int = option(512, "encoder width")
    encoder_ffn_embed_dim: int = option(2048, "encoder feed-forward width")
    encoder_layers: int = option(6, "encoder layers")
    encoder_attention_heads: int = option(8, "encoder attention heads")
    encoder_learned_pos: bool = option(False, "learned positions in the encoder (else sinusoidal)")
    decoder_embed_dim: int = option(512, "denoiser width")
    decoder_ffn_embed_dim: int = option(2048, "denoiser feed-forward width")
    decoder_layers: int = option(6, "denoiser layers")
    decoder_attention_heads: int = option(8, "denoiser attention heads")
    decoder_learned_pos: bool = option(False, "learned positions in the denoiser (else sinusoidal)")
    latent_dim: int = option(128, "width D of the target embeddings")
    layer_norm_position: ChoiceEnum(["pre", "post"]) = option("post", "layer norm before or after each block")
    share_all_embeddings: bool = option(False, "the encoder reads the latent table too (requires a joined dictionary)")
    activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = option("relu", "activation")
    dropout: float = option(0.1, "dropout probability")
    attention_dropout: float = option(0.0, "dropout probability of attention weights")
    activation_dropout: float = option(0.0, "dropout probability after the feed-forward activation")
    max_length_offset: int = option(256, "predicted target lengths differ from the source's by at most this")
    autocast: ChoiceEnum(["none", "bf16"]) = option(
        "none", "bf16: networks and logits in bfloat16 by autocast; parameters and the sums of losses stay float32"
    )
    source_lang: Optional[str] = II("task.source_lang")
    target_lang: Optional[str] = II("task.target_lang")
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")


@dataclass
class FastDiSSConfig(ModelConfig):
    """The options of FastDiSS: continuous diffusion."""

    noise_schedule: ChoiceEnum(list(SCHEDULES)) = option("sqrt", "noise schedule")
    noise_factor: float = option(4.0, "noise factor F of training: z_t = alpha z_0 + F sigma eps")


@dataclass
class FSDFMConfig(ModelConfig):
    """The options of FS-DFM: discrete flow matching."""

    noise_source: ChoiceEnum(list(SOURCES)) = option(
        "mask",
        "what tokens are before they are words of the sentence: random words (uniform, the paper's), or the mask",
    )
    step_aware: bool = option(
        False,
        "stage B: the network is told the size of its step and learns large ones from the moving average of itself, "
        "which is what decodes (begin from a model trained without: --finetune-from-model)",
    )
    teacher_decay: float = option(0.9995, "decay at each update of the moving average of --step-aware")


def _sizes(dim: int, ffn: int, heads: int, layers: int, **others) -> Dict[str, object]:
    sizes = {"embed_dim": dim, "ffn_embed_dim": ffn, "attention_heads": heads, "layers": layers}
    both = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sizes.items()}
    return {**both, **others}


#: What each size changes in :class:`ModelConfig`.
SIZES: Dict[str, Dict[str, object]] = {
    "tiny": _sizes(128, 512, 4, 2, latent_dim=64, layer_norm_position="pre"),
    "small": _sizes(256, 1024, 4, 4, layer_norm_position="pre"),
    "iwslt": _sizes(512, 1024, 4, 6, dropout=0.3),
    "base": {},
    "768": _sizes(768, 3072, 12, 6),
}
FASTDISS_ARCHITECTURES: Tuple[str, ...] = tuple(f"fastdiss_{size}" for size in SIZES)
FSDFM_ARCHITECTURES: Tuple[str, ...] = tuple(f"fsdfm_{size}" for size in SIZES)
ARCHITECTURES = FASTDISS_ARCHITECTURES + FSDFM_ARCHITECTURES


def architecture_config(name: str) -> Type[ModelConfig]:
    """The options of an architecture: a subclass of its family's with its defaults."""
    family, _, size = name.partition("_")
    base = {"fastdiss": FastDiSSConfig, "fsdfm": FSDFMConfig}[family]
    declared = base.__dataclass_fields__
    fields = []
    for key, value in SIZES[size].items():
        fields.append((key, declared[key].type, field(default=value, metadata=declared[key].metadata)))
    return make_dataclass(f"{name}_config", fields, bases=(base,))
