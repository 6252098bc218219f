"""The denoiser as fairseq's own decoder layers would run it: slow, plain, and the measure of the fast one.

Keys and values of the source are projected anew at every evaluation, candidates copy their source, and
positions are computed each time.  Tests hold :class:`Denoiser` to it and the benchmark compares speeds.
"""

from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from fairseq.models.transformer import TransformerConfig
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase

from .denoiser import Denoiser
from .target import Target
from .transformer import Attention, LayerConfig, Layout, TransformerLayer


class States(NamedTuple):
    """Encoder states (S, L, d) and their ``mask`` (S, L); the counterpart of :class:`Memory`."""

    states: Tensor
    mask: Tensor

    def select(self, rows: Tensor) -> "States":
        return States(self.states[rows], self.mask[rows])


class ReferenceDenoiser(nn.Module):
    """A :class:`Denoiser` with the same weights and results; made for evaluation only.

    Args:
        denoiser: whose weights are copied.
        cfg: its layer sizes.
    """

    def __init__(self, denoiser: Denoiser, cfg: LayerConfig):
        super().__init__()
        self.input, self.time, self.positions = denoiser.input, denoiser.time, denoiser.positions
        self.layers = nn.ModuleList(plain_layer(layer, cfg) for layer in denoiser.layers)
        self.norm, self.output = denoiser.norm, denoiser.output
        self.eval()

    def memory(self, states: Tensor, mask: Tensor) -> States:
        return States(states, mask)

    def target(self, mask: Tensor) -> Target:
        return Target(Layout(mask), mask, mask)

    def forward(self, z: Tensor, time_features: Tensor, z_bar: Tensor, target: Target, memory: States) -> Tensor:
        """As :meth:`Denoiser.forward`."""
        mask, copies = target.layout.mask, len(z) // len(memory.mask)
        states = memory.states.repeat_interleave(copies, dim=0).transpose(0, 1)
        padding = ~memory.mask.repeat_interleave(copies, dim=0)
        x = self.input(torch.cat((z, z_bar), dim=-1))
        x = (x + time_features + self.positions(mask)).transpose(0, 1)
        for layer in self.layers:
            x = layer(x, states, padding, self_attn_padding_mask=~mask)[0]
        return self.output(self.norm(x.transpose(0, 1))).float()


def plain_layer(layer: TransformerLayer, cfg: LayerConfig) -> TransformerDecoderLayerBase:
    """fairseq's decoder layer with the weights of ours."""
    options = TransformerConfig()
    options.dropout, options.attention_dropout, options.activation_fn = 0.0, 0.0, cfg.activation
    options.encoder.embed_dim = cfg.memory_dim
    options.decoder.embed_dim, options.decoder.ffn_embed_dim = cfg.dim, cfg.ffn_dim
    options.decoder.attention_heads, options.decoder.normalize_before = cfg.heads, cfg.pre_norm
    plain = TransformerDecoderLayerBase(options)
    copy_attention(layer.self_attention, plain.self_attn)
    copy_attention(layer.cross_attention, plain.encoder_attn)
    pairs = (
        (layer.self_norm, plain.self_attn_layer_norm),
        (layer.cross_norm, plain.encoder_attn_layer_norm),
        (layer.feed_forward.inner, plain.fc1),
        (layer.feed_forward.outer, plain.fc2),
        (layer.ffn_norm, plain.final_layer_norm),
    )
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict())
    return plain.to(layer.feed_forward.inner.weight)


def copy_attention(ours: Attention, theirs: nn.Module) -> None:
    """Copy the weights of an attention; fairseq keeps keys and values apart."""
    keys, values = (part.chunk(2) for part in (ours.key_value.weight, ours.key_value.bias))
    weights = {"q_proj": (ours.query.weight, ours.query.bias), "out_proj": (ours.output.weight, ours.output.bias)}
    weights.update(k_proj=(keys[0], values[0]), v_proj=(keys[1], values[1]))
    with torch.no_grad():
        for name, (weight, bias) in weights.items():
            getattr(theirs, name).weight.copy_(weight)
            getattr(theirs, name).bias.copy_(bias)
