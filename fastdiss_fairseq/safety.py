"""Trainings that survive: checkpoints are written whole, found whole and read with care, and the batch at which a
step breaks is named.

fairseq offers no hooks at these places, so importing the package wraps a few of its functions, for stock tasks too.
"""

import functools
import logging
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import List

import torch
from omegaconf import OmegaConf, open_dict

from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer

from .compat import read_lazily
from .diffusion.noise_scaling import is_fraction
from .errors import FastDiSSError, flag

logger = logging.getLogger(__name__)

#: What torch and fairseq raise when they read a file that is no checkpoint.
UNREADABLE = (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, AttributeError, ValueError)


#: What torch says where a file cannot be written.
WRITING = re.compile(r"PytorchStreamWriter|unexpected pos|iostream|file write failed", re.IGNORECASE)


def guard_training() -> None:
    """Wrap fairseq's saving, loading and training step."""
    checkpoint_utils._torch_persistent_save = torch.save  # fairseq's tries again behind what it has half written
    for owner, name, guarded in (
        (checkpoint_utils, "torch_persistent_save", _saving),
        (PathManager, "copy", _copying),
        (checkpoint_utils, "load_checkpoint_to_cpu", _loading),
        (Trainer, "load_checkpoint", _resuming),
        (Trainer, "train_step", _stepping),
    ):
        stock = getattr(owner, name)
        setattr(owner, name, functools.wraps(stock)(guarded(stock)))


def _saving(stock):
    """fairseq writes a checkpoint beside its name and renames it; where that fails, say so in one line."""

    def save(obj, filename, *args, **kwargs):
        try:
            return stock(obj, filename, *args, **kwargs)
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) or WRITING.search(str(error)):
                raise not_saved(filename, error) from error
            raise  # a fault of the device that shows when its tensors are fetched is no full disk

    return save


def _copying(stock):
    """fairseq copies the checkpoint it wrote to ``checkpoint_last.pt`` and ``checkpoint_best.pt`` in place, so a
    process that is killed then leaves a half file there: copy beside, and rename."""

    def copy(src_path, dst_path, overwrite=False):
        if not overwrite or PathManager.path_requires_pathmanager(dst_path):
            return stock(src_path, dst_path, overwrite)
        try:
            shutil.copyfile(src_path, f"{dst_path}.tmp")
            os.replace(f"{dst_path}.tmp", dst_path)
        except OSError as error:
            raise not_saved(dst_path, error) from error
        return True

    return copy


def not_saved(filename: str, error: Exception) -> FastDiSSError:
    """The error that ends a training whose checkpoint cannot be written; removes the part that was."""
    try:
        os.remove(f"{filename}.tmp")
    except OSError:
        pass
    return FastDiSSError(
        f"cannot save {filename}: {str(error).splitlines()[0]}; the checkpoints before it are whole: make room, "
        "and the same command goes on from the last"
    )


def _loading(stock):
    """Say in one line why a file is no checkpoint, and let options be overridden that an older one does not know."""

    def load(path, arg_overrides=None, *args, **kwargs):
        if os.path.isdir(path):
            raise FastDiSSError(f"{path} is a folder, no checkpoint: a bundle's is its model.pt")
        _verify_bundle(path)
        try:
            state = stock(path, arg_overrides, *args, **kwargs)
        except UNREADABLE as error:
            raise FastDiSSError(f"{path} {fault(path) or foreign(error)}") from error
        _add_decoding_options(state, arg_overrides or {})
        return state

    return load


def _add_decoding_options(state: dict, overrides: dict) -> None:
    """Give a FastDiSS checkpoint the options of decoding that came after it: fairseq overrides none that is missing."""
    from .generation.config import decoding_defaults

    task = (state.get("cfg") or {}).get("task")
    if OmegaConf.is_config(task) and task.get("_name") == "fastdiss":
        with open_dict(task):
            for name in set(decoding_defaults()) - set(task):
                task[name] = overrides.get(name, decoding_defaults()[name])


def _verify_bundle(path: str) -> None:
    """Where a checkpoint is that of a bundle, raise FastDiSSError unless the bundle's checksums agree."""
    from .bundle import verify

    if _is_of_a_bundle(path):
        verify(Path(path).parent)


def _is_of_a_bundle(path: str) -> bool:
    from .bundle import WEIGHTS, Bundle

    folder, name = os.path.split(path)
    return name == WEIGHTS and Bundle.is_at(folder)


def fault(path) -> str:
    """What is wrong with a checkpoint's bytes, as the end of a sentence; empty where they are as they were written.

    torch writes zip archives, which hold a checksum of each part and their table of contents at the end.
    """
    if os.path.getsize(path) == 0:
        return "is empty"
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as stream:
            cut_off = stream.read(2) == b"PK"
        return "is damaged: its end is missing" if cut_off else "is no checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            return "is damaged: a checksum differs" if archive.testzip() else ""
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        return f"is damaged: {error}"


def foreign(error: Exception) -> str:
    """What is wrong with a file whose bytes are whole, from what reading it raised."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return (
            f"holds {refused.group(1)}, which is no data: it was not loaded, since loading it could run any command "
            "on this machine"
        )
    return f"is no checkpoint of fairseq ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"


def _resuming(stock):
    """Go on from the newest whole checkpoint, and say in one line what does not fit it."""

    def load_checkpoint(trainer, filename, *args, **kwargs):
        filename = newest_whole(filename)
        goes_on = not (args[0] if args else kwargs.get("reset_optimizer"))
        if goes_on and _is_of_a_bundle(filename):
            raise FastDiSSError(
                f"{filename} is a bundle's, which has no optimizer to go on with: give it as --finetune-from-model"
            )
        if goes_on and trainer.data_parallel_rank == 0:
            _name_changes(trainer.cfg, filename)
        try:
            return stock(trainer, filename, *args, **kwargs)
        except AssertionError as error:  # another optimizer or criterion
            raise FastDiSSError(f"cannot go on from {filename}: {error}") from error
        except Exception as error:
            if isinstance(error.__context__, FastDiSSError):  # which fairseq replaces by "Cannot load"
                raise FastDiSSError(f"cannot go on from {filename}: {error.__context__}") from error
            raise

    return load_checkpoint


def _name_changes(cfg, filename: str) -> None:
    """Say which options of model and criterion differ from those that a FastDiSS checkpoint was trained with so far."""
    if getattr(cfg.task, "_name", None) != "fastdiss" or not os.path.isfile(filename):
        return
    try:
        before = read_lazily(filename).get("cfg") or {}
    except UNREADABLE:
        return  # what is wrong with it is said where it is loaded
    changes = changed_options(before, cfg) + moved_phases(before, cfg)
    if changes:
        logger.warning(f"{filename} was trained with other options until now: {'; '.join(changes)}")


def changed_options(before: dict, now) -> List[str]:
    """The options of model and criterion that two configurations have and disagree about, as ``--name old, now new``;
    not those that the groups share with others (updates, seed, languages)."""
    shared = {name for group in ("common", "optimization", "task") for name in now[group]}
    return [
        f"{flag(name)} {before[group][name]}, now {value}"
        for group in ("model", "criterion")
        for name, value in now[group].items()
        if name in (before.get(group) or {}) and name not in shared and before[group][name] != value
    ]


def moved_phases(before: dict, now) -> List[str]:
    """What another number of updates does to MANS, whose phases can be fractions of it, in words."""
    loss, updates = now["criterion"], now["optimization"]["max_update"]
    known = (before.get("criterion") or {}).get("max_update", updates)
    if known == updates or getattr(loss, "no_mans", True):
        return []
    moved = any(map(is_fraction, (loss.mans_start, *loss.mans_phase)))
    return [f"--max-update {known}, now {updates}, of which MANS' phases are fractions"] if moved else []


def newest_whole(filename: str) -> str:
    """``filename``, or where it is a damaged ``checkpoint_last.pt`` the checkpoint of fairseq's beside it that was
    written last and is whole.

    Raises:
        FastDiSSError: there is none, or the file of ``--restore-file`` does not exist.
    """
    last = re.fullmatch(r"checkpoint_last(.*)\.pt", os.path.basename(filename))
    if last is None and not PathManager.isfile(filename):
        raise FastDiSSError(f"no checkpoint {filename}")
    if last is None or not os.path.isfile(filename) or not fault(filename):
        return filename
    named = re.compile(rf"checkpoint(\d+|_\d+_\d+|_best|\.best_.+){re.escape(last.group(1))}\.pt")
    others = [path for path in Path(filename).parent.iterdir() if named.fullmatch(path.name)]
    for other in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        if not fault(other):
            logger.warning(f"{filename} {fault(filename)}; going on from {other}, the newest whole checkpoint")
            return str(other)
    raise FastDiSSError(
        f"{filename} {fault(filename)}, and no whole checkpoint lies beside it: remove it to begin anew"
    )


def _stepping(stock):
    """Name the sentences at which gradients or losses are no numbers, or fp16's scale cannot fall any further."""

    def train_step(trainer, samples, *args, **kwargs):
        try:
            return stock(trainer, samples, *args, **kwargs)
        except FloatingPointError as error:
            if any("id" not in sample for sample in samples if sample):  # multilingual tasks have batches of batches
                raise
            ids = [number for sample in samples if sample for number in sample["id"].tolist()]
            raise FastDiSSError(
                f"update {trainer.get_num_updates() + 1} stopped: {error}; the batch holds the sentences {ids} of the "
                "training set (from 0); go on from an earlier checkpoint with a lower --lr or a smaller --clip-norm"
            ) from error

    return train_step
