"""Length prediction: p(T | x), as an offset against the source length."""

from typing import Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class LengthPredictor(nn.Module):
    """A softmax over target minus source length, from the mean encoder state.

    Args:
        dim: encoder width.
        max_offset: offsets lie in [-max_offset, max_offset]; gold offsets beyond are clipped.
    """

    def __init__(self, dim: int, max_offset: int):
        super().__init__()
        self.max_offset = max_offset
        self.output = nn.Linear(dim, self.offsets)

    @property
    def offsets(self) -> int:
        """How many lengths of a target can be predicted for a source."""
        return 2 * self.max_offset + 1

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Encoder states (B, S, d), mask (B, S); returns logits (B, 2 max_offset + 1) float32."""
        weights = mask.unsqueeze(-1).type_as(states)
        return self.output((states * weights).sum(1) / weights.sum(1)).float()

    def loss(self, logits: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood (B,) of target lengths (B,) given source lengths (B,)."""
        offset = (target - source).clamp(-self.max_offset, self.max_offset)
        return F.cross_entropy(logits, offset + self.max_offset, reduction="none")

    def top(
        self, logits: Tensor, source: Tensor, beam: int, longest: int, factor: float = 1.0
    ) -> Tuple[Tensor, Tensor]:
        """The ``beam`` likeliest lengths of each sentence, at most :attr:`offsets`, likeliest first, times ``factor`` and
        rounded; and their log-probabilities: (B, beam) each.

        Lengths lie in [1, longest], and differ: of those that the factor makes equal the likeliest one counts.  Where there
        are fewer than ``beam``, the likeliest is repeated.
        """
        log_probs = logits.log_softmax(-1)
        offsets = torch.arange(-self.max_offset, self.max_offset + 1, device=logits.device)
        lengths = source.unsqueeze(1) + offsets
        possible = (lengths >= 1) & (lengths <= longest)
        scores = log_probs.masked_fill(~possible, -float("inf"))
        lengths = lengths.clamp(1, longest)
        if factor != 1:
            lengths = (lengths * factor).round().long().clamp(1, longest)
            of_each = scores.new_full((len(scores), longest + 1), -float("inf"))
            likeliest = of_each.scatter_reduce(1, lengths, scores, "amax").gather(1, lengths)
            scores = scores.masked_fill(scores < likeliest, -float("inf"))
        values, best = scores.topk(beam, dim=1)
        best = torch.where(values == -float("inf"), best[:, :1], best)
        return lengths.gather(1, best), log_probs.gather(1, best)
