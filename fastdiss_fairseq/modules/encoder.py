"""The source encoder."""

import torch.nn as nn
from torch import Tensor

from fairseq.modules.fairseq_dropout import FairseqDropout

from .embedding import Positions
from .transformer import LayerConfig, Layout, TransformerLayer, attention_bias, final_norm


class Encoder(nn.Module):
    """Source tokens to states; ``embedding`` maps ids (B, S) to (B, S, d)."""

    def __init__(self, cfg: LayerConfig, layers: int, embedding: nn.Module, positions: Positions):
        super().__init__()
        self.embedding, self.positions = embedding, positions
        self.dropout = FairseqDropout(cfg.dropout)
        self.layers = nn.ModuleList(TransformerLayer(cfg) for _ in range(layers))
        self.norm = final_norm(cfg.dim, cfg.pre_norm)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, S), mask (B, S) True at real tokens; returns (B, S, d)."""
        x = self.embedding(tokens)
        layout = Layout(mask) if self.training else Layout.packed(mask)
        x = layout.pack(self.dropout(x + self.positions(mask).type_as(x)))
        bias = attention_bias(mask, x)
        for layer in self.layers:
            x = layer(x, layout, bias)
        return layout.unpack(self.norm(x))
