"""The generator: from a fairseq sample to hypotheses, in K network evaluations."""

from dataclasses import replace
from typing import Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from ..compat import FastDiSSError
from ..diffusion.noise import fold, sentence_key
from ..diffusion.mask_predict import mask_predict
from ..diffusion.sampling import MASK_PREDICT, Read, sample
from ..models.fastdiss import FastDiSSModel, Source
from ..modules.rounding import read
from .choice import autoregressive_score, mbr, mean_log_probability
from .config import Decoding, positive


class Candidates(NamedTuple):
    """Decoded candidates of S sentences: ``tokens``, ``log_probs`` and ``mask`` (S, C, T),
    ``steps`` (S,) and ``history``, what stood after each step."""

    tokens: Tensor
    log_probs: Tensor
    mask: Tensor
    steps: Tensor
    history: List[Read]


class FastDiSSGenerator:
    """Length beam x noise beam candidates, decoded together, and the best of them.

    Args:
        dictionary: the target dictionary.
        decoding: the resolved options.

    ``eos`` and ``pad`` are token ids; fairseq's commands read ``eos``.
    """

    def __init__(self, dictionary, decoding: Decoding):
        self.decoding = decoding
        self.pad, self.eos, self.bos = dictionary.pad(), dictionary.eos(), dictionary.bos()
        self.symbols_to_strip_from_output = {self.eos}

    @torch.no_grad()
    def generate(
        self, models, sample, decoding_steps: Optional[int] = None, prefix_tokens=None, constraints=None
    ) -> List[List[Dict[str, Tensor]]]:
        """Decode a batch.

        Args:
            models: a FastDiSS model, and for the choice ``ar`` an autoregressive one after it.
            sample: a fairseq batch; only ``net_input.src_tokens`` (S, L) is read.
            decoding_steps: K of this call; otherwise that of the options.
        Returns:
            for each sentence its candidates, best first: ``tokens`` (T,), ``score`` (by which it was
            chosen), ``positional_scores`` (T,) log-probabilities, ``steps`` (network evaluations),
            ``attention`` and ``alignment`` None, and where asked for ``history``, a list with ``tokens`` and
            ``positional_scores`` after each step.

        Raises:
            FastDiSSError: K < 1, a prefix or constraints, or a reranker missing.
        """
        if prefix_tokens is not None or constraints is not None:
            raise FastDiSSError("FastDiSS decodes without --prefix-size and --constraints")
        decoding = self.decoding
        if decoding_steps is not None:
            decoding = replace(decoding, steps=positive("decoding_steps", decoding_steps))
        for model in models:
            model.eval()
        src_tokens = sample["net_input"]["src_tokens"]
        found = self.decode(models[0], src_tokens, decoding)
        scores = self.choose(models, src_tokens, found, decoding.choice)
        return self._hypotheses(found, scores, decoding)

    def decode(self, model: FastDiSSModel, src_tokens: Tensor, decoding: Decoding) -> Candidates:
        """All candidates of a batch of sources (S, L)."""
        source = model.encode(src_tokens)
        key, mask = self._layout(model, src_tokens, source, decoding)
        shape = (mask.size(2), model.cfg.latent_dim)
        whole = model.denoiser.target(mask.flatten(0, 1))
        numbers = torch.arange(mask[..., 0].numel(), device=mask.device).view(mask.shape[:2])

        def denoise(z, t, z_bar, rows):
            memory, target = source.memory, whole
            if len(rows) < len(mask):
                memory, target = memory.select(rows), whole.select(numbers[rows].flatten())
            time = t.flatten(0, 1) if t.dim() else t.to(z.device).view(1, 1)
            return model.denoise(z.flatten(0, 1), time, z_bar.flatten(0, 1), target, memory).view(z.shape)

        def read(estimate, rows, where):
            return self.read(model, estimate, mask[rows], where, decoding.estimate)

        def read_all(estimate, rows):
            return self.round(model, estimate, mask[rows])

        def refine(estimate, rows):
            return model.refine(estimate, mask[rows], decoding.estimate)

        steps, sampler, early_exit = decoding.steps, decoding.sampler, decoding.early_exit
        if sampler.solver == MASK_PREDICT:
            tokens, log_probs, taken, history = mask_predict(
                denoise, read, model.embedding, key, mask, shape[1], steps, sampler, early_exit
            )
        else:
            watched = read_all if decoding.history or early_exit else None
            found = sample(denoise, key, shape, steps, sampler, watched, early_exit, refine)
            tokens, log_probs = self.round(model, found.estimate, mask)
            taken, history = found.steps, found.history
        evaluations = taken * (2 if decoding.sampler.self_conditioning == "recompute" else 1)
        return Candidates(tokens, log_probs, mask, evaluations, history)

    def _layout(self, model, src_tokens: Tensor, source: Source, decoding: Decoding):
        """Noise keys (S, C) and mask (S, C, T) of the candidates: lengths x seeds, lengths first."""
        longest = model.cfg.max_target_positions
        lengths = model.length.top(source.length_logits, source.lengths, decoding.length_beam, longest)
        seeds = torch.arange(decoding.noise_beam, device=lengths.device)
        own = sentence_key(decoding.seed, src_tokens, src_tokens.ne(self.pad))
        key = fold(own.unsqueeze(1), "candidate", seeds).repeat(1, lengths.size(1))
        lengths = lengths.repeat_interleave(decoding.noise_beam, dim=1)
        positions = torch.arange(int(lengths.max()), device=lengths.device)
        return key, positions < lengths.unsqueeze(2)

    def round(self, model, estimate: Tensor, mask: Tensor):
        """Nearest tokens and their log-probabilities, (S, C, T) each, of estimates (S, C, T, D).

        The last position is the end of sentence; no other is, and none is padding or <s>.
        """
        return self.read(model, estimate, mask, mask, "direct")[:2]

    def read(self, model, estimate: Tensor, mask: Tensor, where: Tensor, how: str):
        """:meth:`round` at the positions ``where``, and what the next step gets there for the estimates
        (S, C, T, D), see :meth:`FastDiSSModel.refine`."""
        last = mask & ~torch.cat((mask[..., 1:], torch.zeros_like(mask[..., :1])), dim=-1)
        tokens = torch.full_like(mask, self.pad, dtype=torch.long)
        log_probs = torch.zeros_like(mask, dtype=torch.float)
        where = where & mask
        states, table = model.rounded(estimate[where])
        found = read(states, table, [self.pad, self.bos, self.eos], mean=how == "expected")
        tokens[where], log_probs[where] = found.tokens, found.log_probs
        tokens, log_probs = tokens.masked_fill(last, self.eos), log_probs.masked_fill(last, 0.0)
        if found.mean is not None:
            return tokens, log_probs, torch.zeros_like(estimate).index_put((where,), found.mean.type_as(estimate))
        return tokens, log_probs, estimate if how == "direct" else model.embedding(tokens)

    def choose(self, models, src_tokens: Tensor, found: Candidates, choice: str) -> Tensor:
        """Scores (S, C) by which candidates are ordered: logarithms, since fairseq prints in base 2."""
        if choice == "mbr":
            return mbr(found.tokens, found.mask, [self.eos]).clamp(min=1e-9).log()
        if choice == "ar":
            return autoregressive_score(models[1], src_tokens, found.tokens, found.mask, self.eos, self.pad)
        return mean_log_probability(found.log_probs, found.mask)

    def _hypotheses(self, found: Candidates, scores: Tensor, decoding: Decoding):
        order = scores.sort(dim=1, descending=True, stable=True).indices
        return [
            [self._hypothesis(found, scores, i, j, decoding.history) for j in row]
            for i, row in enumerate(order.tolist())
        ]

    def _hypothesis(self, found: Candidates, scores: Tensor, i: int, j: int, history: bool):
        real = found.mask[i, j]
        hypothesis = {
            "tokens": found.tokens[i, j][real],
            "score": scores[i, j],
            "positional_scores": found.log_probs[i, j][real].clone(),
            "steps": int(found.steps[i]),
            "attention": None,
            "alignment": None,
        }
        if history:
            hypothesis["history"] = [
                {"tokens": step.tokens[i, j][real], "positional_scores": step.log_probs[i, j][real]}
                for step in found.history
            ]
        return hypothesis


def check_models(models, choice: str) -> None:
    """Raise FastDiSSError unless ``models`` are what the choice needs.

    The first must be a FastDiSS model; ``ar`` needs exactly one autoregressive model after it.
    """
    if not isinstance(models[0], FastDiSSModel):
        raise FastDiSSError(
            f"the checkpoint holds a {type(models[0]).__name__}, not a FastDiSS model: "
            "decode it with the task it was trained with"
        )
    if choice != "ar":
        if len(models) > 1:
            raise FastDiSSError(
                "FastDiSS decodes with one model; a second --path entry is a reranker and needs --decoding-choice ar"
            )
    elif len(models) != 2 or not hasattr(models[1], "decoder") or isinstance(models[1], FastDiSSModel):
        raise FastDiSSError(
            "--decoding-choice ar needs an autoregressive model as second --path entry "
            "(--path fastdiss.pt:transformer.pt)"
        )
