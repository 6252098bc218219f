"""Python calls: raw text in, raw text out.

from fastdiss_fairseq import FastDiSS
model = FastDiSS.from_pretrained("models/multi30k_de_en")
model.translate(["Ein Mann schläft."], steps=5)
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import List, NamedTuple, Sequence, Union

import torch

from fairseq import checkpoint_utils, utils
from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig
from fairseq.data.encoders.subword_nmt_bpe import SubwordNMTBPE, SubwordNMTBPEConfig

from .compat import FastDiSSError
from .generation.config import positive
from .tools.export import DESCRIPTION, WEIGHTS, verify


class Hypothesis(NamedTuple):
    """``text``; ``score``, by which candidates were ordered; ``evaluations`` of the network; ``steps``, the text
    after each step where it was asked for."""

    text: str
    score: float
    evaluations: int
    steps: List[str]


class FastDiSS:
    """A trained model with its dictionaries, tokeniser and BPE codes.

    Args:
        model: a FastDiSS model, on the device that it is to run on.
        task: the fairseq task with its dictionaries.
        source_language, target_language: of the text, for the Moses tokeniser.
        codes: file of BPE codes; None: text comes and goes as the model's tokens, separated by spaces.
    """

    def __init__(self, model, task, source_language: str, target_language: str, codes=None):
        self.model, self.task = model.eval(), task
        self.tokenizer = self.bpe = None
        if codes is not None:
            self.tokenizer = MosesTokenizer(
                MosesTokenizerConfig(source_lang=source_language, target_lang=target_language)
            )
            self.bpe = SubwordNMTBPE(SubwordNMTBPEConfig(bpe_codes=str(codes)))

    @classmethod
    def from_pretrained(cls, folder: Union[str, Path], device: Union[str, torch.device] = "cpu") -> "FastDiSS":
        """Load a bundle that ``fastdiss-export`` made.

        Raises:
            FastDiSSError: no bundle, or a file whose checksum is not the bundle's.
        """
        folder = Path(folder)
        verify(folder)
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        pair = description["source_lang"], description["target_lang"]
        overrides = {"data": str(folder), "source_lang": pair[0], "target_lang": pair[1]}
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(folder / WEIGHTS)], arg_overrides=overrides
        )
        codes = folder / "codes"
        languages = description.get("tokenizer_langs", pair)
        return cls(models[0].float().to(device), task, *languages, codes if codes.is_file() else None)

    def translate(self, sentences: Sequence[str], steps: int = 5, **options) -> List[str]:
        """The best candidate of each sentence; options as in :meth:`decode`."""
        return [candidates[0].text for candidates in self.decode(sentences, steps, **options)]

    def decode(
        self, sentences: Sequence[str], steps: int = 5, batch_size: int = 64, return_steps: bool = False, **options
    ) -> List[List[Hypothesis]]:
        """All candidates of each sentence, best first.

        Args:
            sentences: raw text.
            steps: K, network evaluations.
            batch_size: sentences decoded together; the result does not depend on it.
            return_steps: also the text after each step.
            options: the task's decoding options: ``length_beam``, ``noise_beam``, ``decoding_choice``,
                ``decoding_solver``, ``early_exit``, ...

        Raises:
            FastDiSSError: an unknown option, or a value out of its range.
        """
        if isinstance(sentences, str):
            raise FastDiSSError("sentences must be a list of strings, not one string")
        request = Namespace(decoding_steps=steps, retain_iter_history=return_steps, **options)
        generator = self.task.build_generator([self.model], request)
        tokens = [self._encode(sentence) for sentence in sentences]
        dataset = self.task.build_dataset_for_inference(tokens, [len(ids) for ids in tokens])
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        device, found = next(self.model.parameters()).device, {}
        for start in range(0, len(order), positive("batch_size", batch_size)):
            chosen = order[start : start + batch_size]
            sample = utils.apply_to_sample(lambda x: x.to(device), dataset.collater([dataset[i] for i in chosen]))
            found.update(zip(sample["id"].tolist(), self.task.inference_step(generator, [self.model], sample)))
        return [[self._hypothesis(candidate) for candidate in found[i]] for i in range(len(tokens))]

    def _encode(self, sentence: str) -> torch.Tensor:
        line = " ".join(sentence.split())
        if self.bpe is not None:
            line = self.bpe.encode(self.tokenizer.encode(line))
        return self.task.source_dictionary.encode_line(line, add_if_not_exist=False).long()

    def _text(self, tokens: torch.Tensor) -> str:
        line = self.task.target_dictionary.string(tokens)
        return line if self.bpe is None else self.tokenizer.decode(self.bpe.decode(line))

    def _hypothesis(self, candidate) -> Hypothesis:
        history = [self._text(step["tokens"]) for step in candidate.get("history", [])]
        return Hypothesis(self._text(candidate["tokens"]), float(candidate["score"]), candidate["steps"], history)
