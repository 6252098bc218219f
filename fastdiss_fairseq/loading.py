"""Loading a checkpoint for a data folder, as all commands that decode do."""

import json
from pathlib import Path
from typing import Optional, Sequence

from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CommonConfig

from .bundle import Bundle
from .errors import FastDiSSError


def weights_of(path) -> Path:
    """The checkpoint that a path stands for: its own, or that of a bundle's folder.

    Raises:
        FastDiSSError: there is none.
    """
    weights = Bundle(path).weights if Bundle.is_at(path) else Path(path)
    _refuse_archive(weights)
    if not weights.is_file():
        raise FastDiSSError(f"no checkpoint {weights}")
    return weights


def data_folder(path) -> Path:
    """The folder of binarised data at a path.

    Raises:
        FastDiSSError: there is none.
    """
    _refuse_archive(Path(path))
    if not Path(path).is_dir():
        raise FastDiSSError(f"no data folder {path}: make it with fairseq-preprocess")
    return Path(path)


def tokenised_as(data, lang: Optional[str]) -> Optional[str]:
    """The language that text of ``lang`` in a data folder was tokenised as: that, where ``scripts/prepare_pairs.py`` has
    not written down another."""
    settings = prepared_with(data)
    sides = settings.get("source_lang"), settings.get("target_lang")
    return dict(zip(sides, settings.get("tokenizer_langs") or sides)).get(lang, lang)


def prepared_with(data) -> dict:
    """The settings of ``scripts/prepare_pairs.py`` for a data folder; nothing where another program made it."""
    try:
        return dict(json.loads((Path(data) / "stats.json").read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _refuse_archive(path: Path) -> None:
    if path.is_file() and path.suffix == ".zip":
        raise FastDiSSError(f"{path} is a zip archive: unpack it first")


def check_reranker(choices: Sequence[str], reranker) -> None:
    """Raise FastDiSSError where candidates are to be chosen among by an autoregressive model, and there is none."""
    if "ar" in choices and not reranker:
        raise FastDiSSError("--choice ar needs an autoregressive checkpoint (--reranker)")


def load_reranker(path, task) -> list:
    """The autoregressive model of a checkpoint with the task's dictionaries.

    Raises:
        FastDiSSError: no checkpoint, or a dictionary that does not fit.
    """
    return checkpoint_utils.load_model_ensemble([str(weights_of(path))], task=task)[0]


def load(path, data, **overrides) -> tuple:
    """The models, configuration and task of a checkpoint, ours or a stock one, or of a bundle's folder, for a data
    folder.

    Args:
        overrides: options that differ from those of training; ``seed`` is fairseq's default unless it is among them.

    Raises:
        FastDiSSError: no checkpoint, no data in the folder, or a dictionary that does not fit.
    """
    path = weights_of(path)
    overrides = {"data": str(data_folder(data)), "seed": CommonConfig.seed, **overrides}
    try:
        return checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides=overrides)
    except RuntimeError as error:  # stock tasks let torch compare the shapes
        if "size mismatch" not in str(error):
            raise
        raise FastDiSSError(f"the dictionaries of {data} do not fit {path}: weights differ in size") from error
    except Exception as error:  # a bundle's folder, for example, as data of a stock model
        if "infer language pair" not in str(error):
            raise
        raise FastDiSSError(f"{data} holds no data that fairseq-preprocess has made") from error
