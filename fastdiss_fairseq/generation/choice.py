"""Choosing among the candidates of a sentence: scores (S, C), larger is better."""

from typing import List, Union

import torch
from torch import Tensor

MAX_ORDER = 4
#: Tokens whose log-probabilities over the whole vocabulary a reranker holds together.
SCORED_AT_ONCE = 4096


def mean_log_probability(log_probs: Tensor, mask: Tensor, of_lengths: Union[Tensor, float] = 0.0) -> Tensor:
    """Log-probability per real token, (S, C): that of the tokens given the length, ``log_probs`` (S, C, T), and that of
    the length itself (S, C).  Without the latter candidates of other lengths are not comparable: the fewer tokens, the
    easier they are."""
    return ((log_probs * mask).sum(-1) + of_lengths) / mask.sum(-1)


def mbr(tokens: Tensor, mask: Tensor, ignored: List[int]) -> Tensor:
    """Minimum Bayes risk: each candidate's mean sentence BLEU against the other candidates.

    BLEU is computed on token ids, up to 4-grams, with add-one smoothing of the orders above 1
    (Lin and Och, 2004) and the brevity penalty.

    Args:
        tokens: (S, C, T) ids.
        mask: (S, C, T) True at real tokens.
        ignored: ids that are no words (end of sentence).
    Returns:
        (S, C) utilities in [0, 1]; zeros where C is 1.
    """
    for symbol in ignored:
        mask = mask & tokens.ne(symbol)
    tokens, mask = _compact(tokens, mask)
    candidates = tokens.size(1)
    length = mask.sum(-1).double()
    log_precision = 0.0
    grams, valid = torch.arange(len(tokens), device=tokens.device).view(-1, 1, 1), mask
    for order in range(1, MAX_ORDER + 1):
        grams, valid = _extend(grams, valid, tokens, mask, order)
        matches, total = _clipped_matches(grams, valid), valid.sum(-1).double().unsqueeze(2)
        smooth = float(order > 1)
        log_precision = log_precision + ((matches + smooth) / (total + smooth).clamp(min=1)).log()
    ratio = length.unsqueeze(1) / length.unsqueeze(2).clamp(min=1)
    bleu = torch.exp(log_precision / MAX_ORDER + (1 - ratio).clamp(max=0))
    bleu = bleu.masked_fill(torch.eye(candidates, dtype=torch.bool, device=bleu.device), 0)
    return bleu.sum(2) / max(candidates - 1, 1)


def _compact(tokens: Tensor, mask: Tensor):
    """Move the real tokens of each row to its front; the others become 0."""
    order = (~mask).long().sort(dim=-1, stable=True).indices
    return tokens.masked_fill(~mask, 0).gather(-1, order), mask.gather(-1, order)


def _extend(grams: Tensor, valid: Tensor, tokens: Tensor, mask: Tensor, order: int):
    """Ids of the n-grams that begin at each position, from those of n - 1 (of 0: the sentence's number).  The ids of a
    batch are dense and ordered, so those of a sentence follow each other."""
    last = torch.zeros_like(tokens)
    inside = torch.zeros_like(mask)
    width = tokens.size(-1) - order + 1
    if width > 0:
        last[..., :width], inside[..., :width] = tokens[..., order - 1 :], mask[..., order - 1 :]
    pairs = grams * (int(tokens.max()) + 1) + last
    return torch.unique(pairs, return_inverse=True)[1], valid & inside


def _clipped_matches(grams: Tensor, valid: Tensor) -> Tensor:
    """(S, C, C): n-grams of candidate i found in candidate j, each counted at most as often as in j."""
    counts = _counts(grams, valid)
    matches = [torch.minimum(counts, counts[:, j : j + 1]).sum(-1) for j in range(counts.size(1))]
    return torch.stack(matches, dim=2).double()


def _counts(grams: Tensor, valid: Tensor) -> Tensor:
    """How often each n-gram of a sentence's candidates occurs in each: (S, C, G)."""
    own = grams - grams.amin(dim=(1, 2), keepdim=True)
    counts = torch.zeros(*grams.shape[:2], int(own.max()) + 1, device=grams.device)
    return counts.scatter_add_(2, own, valid.float())


def autoregressive_score(model, src_tokens: Tensor, tokens: Tensor, mask: Tensor, eos: int, pad: int) -> Tensor:
    """Mean log-probability of candidates (S, C, T) under an autoregressive fairseq model: (S, C)."""
    sentences, candidates, width = tokens.shape
    output = tokens.masked_fill(~mask, pad).view(-1, width)
    previous = torch.cat((output.new_full((len(output), 1), eos), output[:, :-1]), dim=1)
    lengths = src_tokens.ne(pad).sum(1)
    encoded = model.encoder.forward_torchscript({"src_tokens": src_tokens, "src_lengths": lengths})
    each = torch.zeros(output.shape, device=tokens.device)
    ends = mask.flatten(0, 1).sum(1)
    for some in ends.argsort().split(max(1, SCORED_AT_ONCE // width)):  # of like lengths: less padding
        longest = int(ends[some[-1]])
        its_source = model.encoder.reorder_encoder_out(encoded, torch.div(some, candidates, rounding_mode="floor"))
        decoded = model.decoder(previous[some, :longest], encoder_out=its_source)
        log_probs = model.get_normalized_probs(decoded, log_probs=True).float()
        each[some, :longest] = log_probs.gather(2, output[some, :longest].unsqueeze(2)).squeeze(2)
    return mean_log_probability(each.view(tokens.shape), mask)
