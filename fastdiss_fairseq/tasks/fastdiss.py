"""The FastDiSS task: fairseq's translation task, decoding in K steps and losing no sentence."""

import functools
import json
import logging
import os
import struct
from dataclasses import dataclass

from omegaconf import II

from fairseq import utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import data_utils
from fairseq.data.encoders import TOKENIZER_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from ..bundle import Bundle
from ..compat import before_loading, device
from ..errors import FastDiSSError, flag
from ..generation.config import MODEL_OPTIONS, DecodingConfig, resolve, without_effect
from ..generation.deployment import Deployment
from ..generation.generator import UNGUIDED, FastDiSSGenerator, check_models
from ..loading import data_folder
from ..models.base import FewStepModel, check_weights, cut, pad_right
from ..models.config import ARCHITECTURES, option
from ..models.fsdfm import FSDFMModel

logger = logging.getLogger(__name__)


@dataclass
class FastDiSSTaskConfig(TranslationConfig, DecodingConfig):
    """The translation task's options and those of decoding."""

    left_pad_source: bool = option(False, "pad the source on the left")
    seed: int = II("common.seed")
    bf16: bool = II("common.bf16")
    fp16: bool = II("common.fp16")
    amp: bool = II("common.amp")
    cpu: bool = II("common.cpu")
    num_shards: int = II("dataset.num_shards")
    shard_id: int = II("dataset.shard_id")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


@register_task("fastdiss", dataclass=FastDiSSTaskConfig)
class FastDiSSTask(TranslationTask):
    """Sequence-to-sequence with FastDiSS models on ``fairseq-preprocess``'s data."""

    #: The kind of model that the command trains; None where it decodes one.
    trained = None
    #: What fairseq's commands were told to make tokens with, and text of them.
    text_tokenizer = text_bpe = None

    @classmethod
    def setup_task(cls, cfg: FastDiSSTaskConfig, **kwargs):
        """Load the dictionaries.

        Raises:
            FastDiSSError: ``--bf16``, ``--left-pad-target``, no such shard, or a data folder, language or dictionary
                that is missing or damaged.
        """
        if cfg.bf16:
            raise FastDiSSError("fairseq's --bf16 is for TPUs; for bfloat16 on a GPU or CPU train with --autocast bf16")
        if cfg.left_pad_target:
            raise FastDiSSError("FastDiSS pads targets on the right: leave --left-pad-target out")
        if not 0 <= cfg.shard_id < cfg.num_shards:
            raise FastDiSSError(f"--shard-id must be from 0 to --num-shards - 1, not {cfg.shard_id}")
        check_data(cfg)
        return super().setup_task(cfg, **kwargs)

    @classmethod
    def load_dictionary(cls, filename):
        try:
            return super().load_dictionary(filename)
        except Exception as error:  # fairseq raises three kinds, Exception among them
            raise FastDiSSError(f"{filename} is no dictionary of fairseq-preprocess: {error}") from error

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        pair = f"{self.cfg.source_lang}-{self.cfg.target_lang}"
        try:
            super().load_dataset(split, epoch, combine, **kwargs)
            dataset = self.datasets[split]
            if not dataset.supports_prefetch:
                dataset[len(dataset) - 1]  # the first that files cut short lack
        except FileNotFoundError:
            raise FastDiSSError(f"no split '{split}' ({pair}) in {self.cfg.data}") from None
        except (ValueError, IndexError, AssertionError, struct.error) as error:
            raise FastDiSSError(
                f"split '{split}' ({pair}) in {self.cfg.data} is empty or damaged: make it again with "
                f"fairseq-preprocess ({error})"
            ) from error
        if dataset.supports_prefetch:  # which fairseq's trainer forgets
            raise FastDiSSError(f"{self.cfg.data} is of fairseq before 0.9: add --dataset-impl lazy")
        if not self._is_training_set(dataset):
            self._count_what_is_read(dataset)

    def _say_what_is_cut(self, lengths) -> None:
        """Warn where sources of these ``lengths`` are longer than what is read."""
        limit = self.longest_source
        long = sum(length > limit for length in lengths)
        if long:
            logger.warning(f"cut to --max-source-positions, {limit} tokens: {long} of {len(lengths)} sentences")

    def _count_what_is_read(self, dataset) -> None:
        """Let batches be made by the tokens that the model reads of each sentence, so that an over-long one, which it
        cuts, takes no more room than another."""
        self._say_what_is_cut(dataset.src_sizes)
        dataset.src_sizes = dataset.src_sizes.clip(max=self.longest_source)
        if dataset.tgt_sizes is not None:
            dataset.tgt_sizes = dataset.tgt_sizes.clip(max=self.cfg.max_target_positions)

    def build_model(self, cfg, from_checkpoint=False):
        """Build a model, ours or a stock one (a reranker).

        Raises:
            FastDiSSError: training another model, with ``--fp16`` or ``--amp`` and no GPU, with ``--fp16`` and a moving
                average, with ``--decoding-int8``, or for a BLEU that is not measured; ``--eval-bleu-args`` that cannot be
                read, or an unknown ``--eval-bleu-detok``; or a checkpoint of the other direction.
        """
        for name in MODEL_OPTIONS:
            if getattr(self.cfg, name) and not from_checkpoint:
                raise FastDiSSError(f"{flag(name)} is for decoding a trained model, not for training")
        if (self.cfg.fp16 or self.cfg.amp) and not from_checkpoint and device(self.cfg).type == "cpu":
            name = "--fp16" if self.cfg.fp16 else "--amp"
            raise FastDiSSError(f"training with {name} needs a GPU; for bfloat16 on a CPU use --autocast bf16")
        if self.cfg.fp16 and getattr(cfg, "step_aware", False) and not from_checkpoint:
            raise FastDiSSError("--fp16 is too coarse for the moving average of --step-aware: use --autocast bf16")
        if self.cfg.best_checkpoint_metric == "bleu" and not self.cfg.eval_bleu and not from_checkpoint:
            raise FastDiSSError("--best-checkpoint-metric bleu needs --eval-bleu")
        check_bleu(self.cfg)
        if from_checkpoint:
            check_direction(cfg, self.cfg)
        elif hasattr(cfg, "source_lang"):  # as inferred from the data, for the checkpoint to say
            cfg.source_lang, cfg.target_lang = self.cfg.source_lang, self.cfg.target_lang
        others = f"--task fastdiss trains the models {', '.join(ARCHITECTURES)}: choose one by --arch"
        name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        if not from_checkpoint and name not in {*MODEL_REGISTRY, *ARCH_MODEL_REGISTRY}:
            raise FastDiSSError(others)  # a name misspelt in a configuration of hydra's
        model = super().build_model(cfg, from_checkpoint)
        if not from_checkpoint and not isinstance(model, FewStepModel):
            raise FastDiSSError(others)
        if not from_checkpoint:
            self.trained = type(model)
        elif isinstance(model, FSDFMModel):
            model.drop_teacher()
        before_loading(model, check_weights)
        return model

    def build_criterion(self, cfg, *others):
        """Build the criterion.

        Raises:
            FastDiSSError: another criterion than ours, or than the model's, or the best checkpoint chosen by what it
                does not measure, or by the worst value.
        """
        known = getattr(cfg, "_name", None) in CRITERION_REGISTRY  # unless misspelt in a configuration of hydra's
        criterion = super().build_criterion(cfg, *others) if known else None
        if not hasattr(criterion, "plan"):
            raise FastDiSSError("--task fastdiss trains with --criterion fastdiss_loss or fsdfm_loss alone")
        if self.trained is not None and not issubclass(self.trained, criterion.trains):
            raise FastDiSSError(
                "--arch fastdiss_* trains with --criterion fastdiss_loss, --arch fsdfm_* with fsdfm_loss"
            )
        if self.trained is not None:
            self._check_measure({**criterion.measures, **({"bleu": True} if self.cfg.eval_bleu else {})})
        return criterion

    def _check_measure(self, measures) -> None:
        """Raise FastDiSSError unless the best checkpoint is chosen by one of these, in its direction."""
        name = self.cfg.best_checkpoint_metric
        if name not in measures:
            raise FastDiSSError(f"--best-checkpoint-metric {name} is not measured here (of {', '.join(measures)})")
        if measures[name] and not self.cfg.maximize_best_checkpoint_metric:
            raise FastDiSSError(f"--best-checkpoint-metric {name} needs --maximize-best-checkpoint-metric")
        if self.cfg.maximize_best_checkpoint_metric and not measures[name]:
            raise FastDiSSError(f"--best-checkpoint-metric {name} excludes --maximize-best-checkpoint-metric")

    def optimizer_step(self, optimizer, model, update_num):
        super().optimizer_step(optimizer, model, update_num)
        model.after_update()

    def eval_lm_dataloader(self, *arguments, **options):
        """Called by fairseq-eval-lm.

        Raises:
            FastDiSSError: always.
        """
        raise FastDiSSError("FastDiSS has no token-by-token likelihood: fairseq-eval-lm is not offered")

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **unused):
        """A generator for ``models`` with the task's options and those of the request ``args``.

        Raises:
            FastDiSSError: what FastDiSS does not do, models that it cannot decode, an option out of its range, or more
                lengths than the model predicts.
        """
        if getattr(args, "score_reference", False):
            raise FastDiSSError("FastDiSS has no token-by-token likelihood: --score-reference is not offered")
        for name in ("print_alignment", "replace_unk"):
            if getattr(args, name, None):
                raise FastDiSSError(f"FastDiSS aligns no words: {flag(name)} is not offered")
        if getattr(args, "prefix_size", 0) or getattr(args, "constraints", None):
            raise FastDiSSError(UNGUIDED)
        check_models(models[:1], "score")
        decoding = resolve(self.cfg, args, models[0].process, models[0].presets)
        check_models(models, decoding.choice)
        beam, lengths = decoding.length_beam, models[0].length.offsets
        if beam > lengths:
            raise FastDiSSError(f"{beam} candidate lengths (--length-beam), but the model predicts one of {lengths}")
        logger.info(f"decoding: {decoding}")
        ignored = without_effect(self.cfg, args, decoding)
        if ignored:
            warn_once(f"no effect, or next to none, on this decoding: {', '.join(map(flag, ignored))}")
        nbest, candidates = getattr(args, "nbest", None) or 1, decoding.length_beam * decoding.noise_beam
        if nbest > candidates:
            warn_once(f"--nbest {nbest}, but --length-beam and --noise-beam make {candidates} of each sentence")
        return FastDiSSGenerator(self.target_dictionary, decoding, Deployment.of(self.cfg))

    def build_tokenizer(self, args):
        self.text_tokenizer = super().build_tokenizer(args)
        return self.text_tokenizer

    def build_bpe(self, args):
        self.text_bpe = super().build_bpe(args)
        return self.text_bpe

    @functools.cached_property
    def longest_source(self) -> int:
        """``--max-source-positions``, which omegaconf takes long to read."""
        return self.cfg.max_source_positions

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Decode, sources no further than to --max-source-positions; where fairseq-interactive was asked for steps
        (``--print-step``), which it does not print itself, show the text after each."""
        inputs, limit = sample["net_input"], self.longest_source
        if inputs["src_tokens"].size(1) > limit:
            src_tokens = cut(pad_right(inputs["src_tokens"], self.source_dictionary.pad()), limit)
            sample = {**sample, "net_input": {**inputs, "src_tokens": src_tokens}}
        found = super().inference_step(generator, models, sample, prefix_tokens, constraints)
        if generator.decoding.history and "id" not in sample:  # only interactive's batches have no ids
            for candidates in found:
                for number, step in enumerate(candidates[0]["history"], 1):
                    print(f"E-{number}\t{self.text(step['tokens'])}")
        return found

    def text(self, tokens) -> str:
        """Target tokens as text, by the BPE and tokeniser of the command."""
        line = self.target_dictionary.string(tokens)
        for coder in (self.text_bpe, self.text_tokenizer):
            line = line if coder is None else coder.decode(line)
        return line

    def get_interactive_tokens_and_lengths(self, lines, encode_fn):
        codes = os.path.join(utils.split_paths(self.cfg.data)[0], "codes")
        if self.text_bpe is None and os.path.isfile(codes):
            warn_once(f"if the input is raw text, add --tokenizer moses --bpe subword_nmt --bpe-codes {codes}")
        lines = [readable(line, self.longest_source) for line in lines]
        return super().get_interactive_tokens_and_lengths(lines, encode_fn)

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        limit = self.longest_source
        self._say_what_is_cut(src_lengths)
        src_tokens = [tokens[:limit] for tokens in src_tokens]
        src_lengths = [min(length, limit) for length in src_lengths]
        return super().build_dataset_for_inference(src_tokens, src_lengths, constraints)

    def filter_indices_by_size(self, indices, dataset, max_positions=None, ignore_invalid_inputs=False):
        """Over-long sentences leave the training set only; elsewhere the model cuts what it reads.

        ``--num-shards`` and ``--shard-id``, which fairseq-generate ignores, take every so-manieth of the other
        sets' sentences, which come ordered by length.  A shard without a sentence ends the command, and well:
        fairseq-generate would divide by zero.
        """
        if self._is_training_set(dataset):
            kept = super().filter_indices_by_size(indices, dataset, max_positions, ignore_invalid_inputs)
            if len(kept) == 0:
                raise FastDiSSError(
                    f"none of the {len(indices)} training sentences is as short as --max-tokens, --max-source-positions "
                    "and --max-target-positions ask"
                )
            return kept
        if not any(dataset is known for known in self.datasets.values()):
            return indices
        share = indices[self.cfg.shard_id :: self.cfg.num_shards]
        if len(share) == 0:
            logger.info(f"shard {self.cfg.shard_id} of {self.cfg.num_shards} has none of the {len(indices)} sentences")
            raise SystemExit(0)
        return share

    def can_reuse_epoch_itr(self, dataset):
        """Training batches are made anew each epoch: reused ones would depend on the epoch that the
        process started in, and resuming would not equal never having stopped."""
        return not self._is_training_set(dataset) and super().can_reuse_epoch_itr(dataset)

    def get_batch_iterator(self, dataset, max_tokens=None, num_workers=0, data_buffer_size=0, **others):
        """fairseq's iterator, made safe.

        Newer fairseq drops the last sentences where their number is no multiple of
        ``--required-batch-size-multiple``, so that option is not passed on.  Outside the training
        set a sentence longer than ``max_tokens`` still makes a batch.  Without worker processes
        nothing is prefetched, since a prefetching thread can crash the process at exit.  fairseq keeps every
        dataset that it has made batches of, so those that pass by, as in fairseq-interactive, are not told to it.
        Workers end with their epoch: newer fairseq's outlive it, and each iterator of an epoch gone by, which
        training has one of for every epoch, then stops the process for five seconds when it is collected.
        """
        others["required_batch_size_multiple"] = 1
        if not any(dataset is split for split in self.datasets.values()):
            others["disable_iterator_cache"] = True
        if not self._is_training_set(dataset) and max_tokens is not None and len(dataset) > 0:
            max_tokens = max(max_tokens, max(map(dataset.num_tokens, range(len(dataset)))))
        iterator = super().get_batch_iterator(
            dataset,
            max_tokens=max_tokens,
            num_workers=num_workers,
            data_buffer_size=data_buffer_size if num_workers > 0 else 0,
            **others,
        )
        iterator.persistent_workers = False
        return iterator

    def _is_training_set(self, dataset) -> bool:
        return self.trained is not None and dataset is self.datasets.get(self.cfg.train_subset)


@functools.lru_cache(maxsize=None)
def warn_once(message: str) -> None:
    logger.warning(message)


def readable(line: str, limit: int) -> str:
    """As much of a line of text as ``limit`` tokens can hold: tokenisers and BPE, whose time grows with the square
    of a word's length, would take minutes over megabytes that the model never sees."""
    if len(line) <= limit:
        return line
    words = line[: 16 * limit].split()[:limit]
    if max(map(len, words), default=0) > limit:
        warn_once(
            f"words (what stands between spaces) are cut to {limit} characters, as many as --max-source-positions"
        )
    return " ".join(word[:limit] for word in words)


def check_data(cfg: FastDiSSTaskConfig) -> None:
    """Raise FastDiSSError where the data folder lacks what the task reads first; fills in languages."""
    folder = utils.split_paths(cfg.data)[0]
    data_folder(folder)
    if Bundle.is_at(folder):
        languages = Bundle(folder).languages
        cfg.source_lang, cfg.target_lang = cfg.source_lang or languages[0], cfg.target_lang or languages[1]
        if (cfg.source_lang, cfg.target_lang) != languages:
            raise FastDiSSError(f"{folder} goes from {languages[0]} to {languages[1]}, not the other way")
    if cfg.source_lang is None or cfg.target_lang is None:
        cfg.source_lang, cfg.target_lang = data_utils.infer_language_pair(folder)
    for language in (cfg.source_lang, cfg.target_lang):
        if language is None:
            raise FastDiSSError(f"cannot infer the languages from {folder}: give --source-lang and --target-lang")
        if not os.path.isfile(os.path.join(folder, f"dict.{language}.txt")):
            raise FastDiSSError(f"no dictionary dict.{language}.txt in {folder}")


def check_direction(trained, wanted: FastDiSSTaskConfig) -> None:
    """Raise FastDiSSError where a checkpoint translates the other way; older and stock ones do not say which."""
    way = getattr(trained, "source_lang", None), getattr(trained, "target_lang", None)
    if None not in way and way == (wanted.target_lang, wanted.source_lang):
        raise FastDiSSError(
            f"the checkpoint was trained from {way[0]} to {way[1]}, not the other way: give -s {way[0]} -t {way[1]}"
        )


def check_bleu(cfg: FastDiSSTaskConfig) -> None:
    """Raise FastDiSSError where the options of BLEU in validation are no JSON objects, or name no tokeniser."""
    if cfg.eval_bleu and cfg.eval_bleu_detok not in TOKENIZER_REGISTRY:
        known = ", ".join(sorted(TOKENIZER_REGISTRY))
        raise FastDiSSError(f"--eval-bleu-detok {cfg.eval_bleu_detok} is no tokeniser of fairseq's ({known})")
    for name in ("eval_bleu_args", "eval_bleu_detok_args"):
        text = getattr(cfg, name)
        try:
            fine = text is None or isinstance(json.loads(text), dict)
        except ValueError:
            fine = False
        if not fine:
            raise FastDiSSError(f"{flag(name)} must be a JSON object like '{{\"a\": 1}}', not {text}")
