"""The generator: from a fairseq sample to hypotheses, in K network evaluations."""

from dataclasses import replace
from typing import Dict, List, Optional

import torch
from torch import Tensor

from fairseq.models import FairseqEncoderDecoderModel
from fairseq.models.nat import FairseqNATModel

from ..errors import FastDiSSError
from ..models.base import FewStepModel
from .candidates import Candidates, Special, with_letters
from .choice import autoregressive_score, mbr, mean_log_probability
from .config import Decoding, positive
from .deployment import UNCHANGED, Deployment
from .stages import Stages

#: What is said of a prefix or constraints.
UNGUIDED = "FastDiSS decodes without --prefix-size and --constraints"


class FastDiSSGenerator:
    """Length beam x noise beam candidates, decoded together, and the best of them.

    Args:
        dictionary: the target dictionary.
        decoding: the resolved options.
        deployment: how models are changed before they decode for the first time.

    ``eos`` and ``pad`` are token ids; fairseq's commands read ``eos``.
    """

    def __init__(self, dictionary, decoding: Decoding, deployment: Deployment = UNCHANGED):
        self.decoding, self.deployment = decoding, deployment
        self.pad, self.eos = dictionary.pad(), dictionary.eos()
        self.special, self.words = Special.of(dictionary), with_letters(dictionary)
        self.symbols_to_strip_from_output = {self.eos}

    @torch.no_grad()
    def generate(
        self, models, sample, decoding_steps: Optional[int] = None, prefix_tokens=None, constraints=None
    ) -> List[List[Dict[str, Tensor]]]:
        """Decode a batch.

        Args:
            models: a FastDiSS or FS-DFM model, and for the choice ``ar`` an autoregressive one after it.
            sample: a fairseq batch; only ``net_input.src_tokens`` (S, L) is read.
            decoding_steps: K of this call; otherwise that of the options.
        Returns:
            for each sentence its candidates, best first: ``tokens`` (T,), ``score`` (by which it was
            chosen), ``positional_scores`` (T,) log-probabilities, ``steps`` (network evaluations),
            ``attention`` and ``alignment`` None, and where asked for ``history``, a list with ``tokens`` and
            ``positional_scores`` after each step that the sentence took, repeats included.  Of a source without
            a word the end of sentence alone.

        Raises:
            FastDiSSError: K < 1, a prefix or constraints, or what the deployment asks of a model that cannot do it.
        """
        if prefix_tokens is not None or constraints is not None:
            raise FastDiSSError(UNGUIDED)
        decoding = self.decoding
        if decoding_steps is not None:
            decoding = replace(decoding, steps=positive("decoding_steps", decoding_steps))
        for model in models:
            model.eval()
        src_tokens = sample["net_input"]["src_tokens"]
        found = self.decode(models[0], src_tokens, decoding)
        if decoding.repeats == "merge":
            self.words = self.words.to(found.tokens.device)
            found = found.merged(self.words)
        scores = self.choose(models, src_tokens, found, decoding.choice)
        blank = (src_tokens.eq(self.pad) | src_tokens.eq(self.eos)).all(1)
        return self._hypotheses(found.emptied(blank), scores, decoding)

    def decode(self, model: FewStepModel, src_tokens: Tensor, decoding: Decoding) -> Candidates:
        """All candidates of a batch of sources (S, L)."""
        model = model.deployed
        self.deployment.prepare(model, self.special)
        return Stages(model, decoding, self.special)(src_tokens)

    def choose(self, models, src_tokens: Tensor, found: Candidates, choice: str) -> Tensor:
        """Scores (S, C) by which candidates are ordered: logarithms, since fairseq prints in base 2.  One candidate has
        no others to be compared with: MBR then gives its log-probability."""
        if choice == "mbr" and found.tokens.size(1) > 1:
            return mbr(found.tokens, found.mask, [self.eos]).clamp(min=1e-9).log()
        if choice == "ar":
            return autoregressive_score(models[1], src_tokens, found.tokens, found.mask, self.eos, self.pad)
        return mean_log_probability(found.log_probs, found.mask, found.length_log_probs)

    def _hypotheses(self, found: Candidates, scores: Tensor, decoding: Decoding):
        found, scores = found.on_host(), scores.cpu()
        order = scores.sort(dim=1, descending=True, stable=True).indices
        return [
            [self._hypothesis(found, scores, i, j, decoding.history) for j in row]
            for i, row in enumerate(order.tolist())
        ]

    def _hypothesis(self, found: Candidates, scores: Tensor, i: int, j: int, history: bool):
        real, decoded = found.mask[i, j], found.places[i, j]
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
                {"tokens": step.tokens[i, j][decoded], "positional_scores": step.log_probs[i, j][decoded]}
                for step in found.history
                if step.rows is None or bool((step.rows == i).any())
            ]
        return hypothesis


def check_models(models, choice: str) -> None:
    """Raise FastDiSSError unless ``models`` are what the choice needs.

    The first must be a model of this package; ``ar`` needs exactly one autoregressive model after it.
    """
    if not isinstance(models[0], FewStepModel):
        raise FastDiSSError(
            f"the checkpoint holds a {type(models[0]).__name__}, not a FastDiSS model: "
            "decode it with the task it was trained with"
        )
    if choice != "ar":
        if len(models) > 1:
            raise FastDiSSError(
                "FastDiSS decodes with one model; a second --path entry is a reranker and needs --decoding-choice ar"
            )
    elif len(models) != 2:
        raise FastDiSSError(
            "--decoding-choice ar needs an autoregressive model as second --path entry "
            "(--path fastdiss.pt:transformer.pt)"
        )
    elif not isinstance(models[1], FairseqEncoderDecoderModel) or isinstance(models[1], FairseqNATModel):
        raise FastDiSSError(f"the reranker must be an autoregressive model; this one is {type(models[1]).__name__}")
