"""The model's options and the table of architectures."""

from dataclasses import dataclass, field, make_dataclass
from typing import Dict, Type

from omegaconf import II

from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from ..compat import FastDiSSError
from ..diffusion.schedules import SCHEDULES


def option(default, text: str):
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


def check_probability(name: str, value: float) -> None:
    """Raise FastDiSSError unless the option's value lies from 0 to 1."""
    if not 0 <= value <= 1:
        raise FastDiSSError(f"--{name.replace('_', '-')} must be a probability from 0 to 1, not {value}")


@dataclass
class FastDiSSConfig(FairseqDataclass):
    """What training and decoding must agree on; the defaults are transformer-base's sizes."""

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
    latent_dim: int = option(128, "width D of the diffused embeddings")
    layer_norm_position: ChoiceEnum(["pre", "post"]) = option("post", "layer norm before or after each block")
    share_all_embeddings: bool = option(False, "the encoder reads the latent table too (requires a joined dictionary)")
    activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = option("relu", "activation")
    dropout: float = option(0.1, "dropout probability")
    attention_dropout: float = option(0.0, "dropout probability of attention weights")
    activation_dropout: float = option(0.0, "dropout probability after the feed-forward activation")
    noise_schedule: ChoiceEnum(list(SCHEDULES)) = option("sqrt", "noise schedule")
    noise_factor: float = option(4.0, "noise factor F of training: z_t = alpha z_0 + F sigma eps")
    max_length_offset: int = option(256, "predicted target lengths differ from the source's by at most this")
    autocast: ChoiceEnum(["none", "bf16"]) = option(
        "none", "bf16: run the networks under bfloat16 autocast, parameters and losses stay float32"
    )
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")


def _sizes(dim: int, ffn: int, heads: int, layers: int, **others) -> Dict[str, object]:
    sizes = {"embed_dim": dim, "ffn_embed_dim": ffn, "attention_heads": heads, "layers": layers}
    both = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sizes.items()}
    return {**both, **others}


#: What each architecture changes in :class:`FastDiSSConfig`.
ARCHITECTURES: Dict[str, Dict[str, object]] = {
    "fastdiss_tiny": _sizes(128, 512, 4, 2, latent_dim=64, layer_norm_position="pre"),
    "fastdiss_small": _sizes(256, 1024, 4, 4, layer_norm_position="pre"),
    "fastdiss_iwslt": _sizes(512, 1024, 4, 6, dropout=0.3),
    "fastdiss_base": {},
    "fastdiss_768": _sizes(768, 3072, 12, 6),
}


def architecture_config(name: str) -> Type[FastDiSSConfig]:
    """The options of an architecture: a subclass of FastDiSSConfig with its defaults."""
    declared = FastDiSSConfig.__dataclass_fields__
    fields = []
    for key, value in ARCHITECTURES[name].items():
        fields.append((key, declared[key].type, field(default=value, metadata=declared[key].metadata)))
    return make_dataclass(f"{name}_config", fields, bases=(FastDiSSConfig,))
