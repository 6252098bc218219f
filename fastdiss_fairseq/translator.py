"""Python calls: raw text in, raw text out.

from fastdiss_fairseq import FastDiSS
model = FastDiSS.from_pretrained("models/multi30k_de_en")
model.translate(["Ein Mann schläft."], steps=5)
"""

from argparse import Namespace
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Union

import torch

from fairseq import checkpoint_utils, utils

from .bundle import Bundle, opened
from .errors import FastDiSSError
from .generation.config import MODEL_OPTIONS, positive
from .generation.generator import check_models
from .loading import load_reranker
from .tasks.fastdiss import readable


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
        models: a FastDiSS model, and after it perhaps a reranker, on the device that they are to run on.
        task: the fairseq task with its dictionaries.
        tokenizer, bpe: fairseq's, for raw text; None: text comes and goes as the model's tokens, separated by spaces.
    """

    def __init__(self, models: Sequence[torch.nn.Module], task, tokenizer=None, bpe=None):
        self.models, self.task, self.tokenizer, self.bpe = list(models), task, tokenizer, bpe
        for model in self.models:
            model.eval()

    @classmethod
    def from_pretrained(
        cls,
        folder: Union[str, Path],
        device: Union[str, torch.device] = "cpu",
        reranker: Optional[Union[str, Path]] = None,
        **options: bool,
    ) -> "FastDiSS":
        """Load a bundle that ``fastdiss-export`` made.

        Args:
            folder: the bundle, a folder or one file (zip).
            reranker: checkpoint of an autoregressive fairseq model with the same dictionaries, for
                ``decoding_choice="ar"``.
            options: what changes the model, :data:`~.generation.config.MODEL_OPTIONS`: ``decoding_onnx=True``,
                ``decoding_bf16=True``, ``decoding_int8=True``, ``decoding_compile=True``, ``decoding_cuda_graphs=True``.

        Raises:
            FastDiSSError: no bundle, a file whose checksum is not the bundle's, no such reranker or one that is not
                autoregressive, an unknown option, or no GPU where one is asked for.
        """
        try:
            wanted = torch.device(device)
        except RuntimeError:
            raise FastDiSSError(f"unknown device '{device}' (cpu, cuda, cuda:1, ...)") from None
        if wanted.type == "cuda" and not torch.cuda.is_available():
            raise FastDiSSError(f"torch sees no GPU here for device {device}")
        with opened(folder) as folder:
            return cls._from_folder(folder, device, reranker, options)

    @classmethod
    def _from_folder(cls, folder: Path, device, reranker, options: Dict[str, bool]) -> "FastDiSS":
        bundle = Bundle(folder)
        unknown = sorted(set(options) - set(MODEL_OPTIONS))
        if unknown:
            raise FastDiSSError(f"unknown option: {', '.join(unknown)} (known: {', '.join(MODEL_OPTIONS)})")
        for name, value in options.items():
            if not isinstance(value, bool):
                raise FastDiSSError(f"{name} must be True or False, not {value!r}")
        overrides = {"data": str(folder), "eval_bleu": False, **bundle.task_options(), **options}
        models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(bundle.weights)], arg_overrides=overrides)
        if reranker is not None:
            models += load_reranker(reranker, task)
            check_models(models, "ar")
        try:
            models = [model.float().to(device) for model in models]
        except (RuntimeError, NotImplementedError) as error:
            raise FastDiSSError(f"device {device} cannot be used here: {error}") from error
        # of fairseq's preparations for inference this one alone: others would keep the model from being trained on
        models[0].deployed.embedding.make_generation_fast_()
        return cls(models, task, *bundle.text_codecs())

    def translate(self, sentences: Iterable[str], steps: int = 5, **options) -> List[str]:
        """The best candidate of each sentence; options as in :meth:`decode`."""
        return [candidates[0].text for candidates in self.decode(sentences, steps, **options)]

    def decode(
        self, sentences: Iterable[str], steps: int = 5, batch_size: int = 64, return_steps: bool = False, **options
    ) -> List[List[Hypothesis]]:
        """All candidates of each sentence, best first; those of a blank sentence are blank.

        Args:
            return_steps: also the text after each step.
            others: as in :meth:`search`.

        Raises:
            FastDiSSError: an unknown option, or a value out of its range.
        """
        found = self.search(sentences, steps, batch_size, **{"retain_iter_history": return_steps, **options})
        return [[self._hypothesis(candidate) for candidate in candidates] for candidates in found]

    def search(self, sentences: Iterable[str], steps: int = 5, batch_size: int = 64, **options) -> List[List[Dict]]:
        """All candidates of each sentence as the generator gives them: token ids, log-probabilities, and with
        ``retain_iter_history=True`` those after each step; see :meth:`FastDiSSGenerator.generate`.

        Args:
            sentences: raw text.
            steps: K, network evaluations.
            batch_size: sentences decoded together; the result does not depend on it.
            options: the task's decoding options: ``length_beam``, ``noise_beam``, ``decoding_choice``,
                ``decoding_solver``, ``early_exit``, ...; and ``seed`` of the noise (default: 1, as fairseq's ``--seed``).

        Raises:
            FastDiSSError: an unknown option, or a value out of its range.
        """
        sentences = listed(sentences)
        if "decoding_steps" in options:
            raise FastDiSSError("the number of steps is given as steps, not decoding_steps")
        request = Namespace(decoding_steps=steps, **options)
        rerank = options.get("decoding_choice") == "ar" or options.get("iter_decode_with_external_reranker")
        models = self.models if rerank else self.models[:1]
        generator = self.task.build_generator(models, request)
        tokens = [self._encode(sentence) for sentence in sentences]
        dataset = self.task.build_dataset_for_inference(tokens, [len(ids) for ids in tokens])
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        device, found = next(models[0].parameters()).device, {}
        for start in range(0, len(order), positive("batch_size", batch_size)):
            chosen = order[start : start + batch_size]
            sample = utils.apply_to_sample(lambda x: x.to(device), dataset.collater([dataset[i] for i in chosen]))
            found.update(zip(sample["id"].tolist(), self.task.inference_step(generator, models, sample)))
        return [found[i] for i in range(len(tokens))]

    def _encode(self, sentence: str) -> torch.Tensor:
        line = " ".join(readable(sentence, self.task.longest_source).split())
        if self.bpe is not None:
            line = self.bpe.encode(self.tokenizer.encode(line))
        return self.task.source_dictionary.encode_line(line, add_if_not_exist=False).long()

    def text(self, tokens: torch.Tensor) -> str:
        """Token ids as raw text."""
        line = self.task.target_dictionary.string(tokens)
        return line if self.bpe is None else self.tokenizer.decode(self.bpe.decode(line))

    def _hypothesis(self, candidate) -> Hypothesis:
        history = [self.text(step["tokens"]) for step in candidate.get("history", [])]
        return Hypothesis(self.text(candidate["tokens"]), float(candidate["score"]), candidate["steps"], history)


def listed(sentences: Iterable[str]) -> List[str]:
    """The sentences as a list.

    Raises:
        FastDiSSError: something else than an iterable of strings.
    """
    several = isinstance(sentences, Iterable) and not isinstance(sentences, (str, bytes))
    found = list(sentences) if several else [sentences]
    wrong = [one for one in found if not (several and isinstance(one, str))]
    if wrong:
        raise FastDiSSError(f"sentences must be a list of strings, not {type(wrong[0]).__name__}")
    return found
