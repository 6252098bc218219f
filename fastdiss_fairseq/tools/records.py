"""Result files: lists of flat records in JSON, written whole after each record, read back on resuming."""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterable, Iterator, Optional, Sequence

import torch

from ..bundle import sha256
from ..compat import device
from ..errors import FastDiSSError

PACKAGES = ("fastdiss-fairseq", "torch", "fairseq", "ve-fairseq", "sacrebleu")
#: What every record has, null where it says nothing of the measurement.
FIELDS = (
    "benchmark", "split", "system", "steps", "self_conditioning", "candidates", "metric", "value", "signature",
    "seconds", "sentences_per_second", "device", "seed", "updates", "command",
)  # fmt: skip

#: A path from the root among other words.
ABSOLUTE = re.compile(r"(?<![^\s='\"])/[^\s'\"]+")


class Records:
    """A results file with one record a cell.

    Args:
        key_fields: what tells cells apart.
        known_by: a field that records of other commands lack.

    Raises:
        FastDiSSError: a file of something else.
    """

    def __init__(self, path, key_fields: Sequence[str], known_by: str):
        self.path, self.key_fields, self.known_by = Path(path), tuple(key_fields), known_by
        self._found = self._read()

    def _read(self) -> Dict[str, dict]:
        """What is on file by now."""
        try:
            records = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []
        except ValueError as error:
            raise FastDiSSError(f"{self.path} is no results file: {error}") from None
        if not all(self.known_by in record for record in records):
            raise FastDiSSError(f"{self.path} holds the results of another command: take another folder")
        return {self.key(record): record for record in records}

    def key(self, record: dict) -> str:
        """What identifies a record, also as part of a file name."""
        return "-".join(f"{record.get(name)}" for name in self.key_fields).replace(os.sep, "_")

    def get(self, record: dict) -> Optional[dict]:
        """The record on file with the same key fields."""
        return self._found.get(self.key(record))

    def __iter__(self) -> Iterator[dict]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def add(self, record: dict) -> None:
        """Add or replace a record, with all of :data:`FIELDS`, and save all, with what other processes have added
        meanwhile; a crash leaves the old file or the new one."""
        with locked(self.path.parent):
            self._found = {**self._read(), self.key(record): complete(record)}
            save(self.path, list(self))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let other processes that would write here wait, where the file system knows of locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def complete(record: dict) -> dict:
    """The record with all of :data:`FIELDS`."""
    return {**record, **{name: record.get(name) for name in FIELDS}}


def save(path: Path, content, indent: Optional[int] = 1) -> None:
    """Write JSON; a crash leaves no half-written file under its name."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def claim(path: Path, settings: dict) -> None:
    """Write down what unfinished work in a folder is of.

    Raises:
        FastDiSSError: it is of something else.
    """
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
    differing = [name for name in settings if before.get(name) != settings[name]]
    if differing:
        raise FastDiSSError(
            f"{path.parent} holds other work: {', '.join(differing)} differ (see {path}); take another folder, or remove it"
        )
    save(path, settings)


def count_parameters(weights: Dict[str, torch.Tensor]) -> int:
    """How many numbers a model has learned; a tensor with several names, as fairseq's shared embeddings, counts once."""
    learned = (value for value in weights.values() if value.is_floating_point())
    return sum({value.data_ptr(): value.numel() for value in learned}.values())


def versions() -> Dict[str, str]:
    """Versions of the packages that results depend on."""
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def clock(args) -> float:
    """The time in seconds, once the device has finished its work."""
    if device(args).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name(device: torch.device) -> str:
    """The device in words, with the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"


def circumstances(command: str, device: torch.device) -> Dict[str, object]:
    """What figures depend on, and how this process was called as a line of a shell: paths without the folders above the
    working directory.  ``command`` is called by others, too (fastdiss-ablate): then that one's name and options."""
    called = Path(sys.argv[0]).name
    words = [
        called if called.startswith("fastdiss-") else command,
        *(word if "/" not in word else _short(word) for word in sys.argv[1:]),
    ]
    return {"device": device_name(device), "versions": versions(), "command": shlex.join(words)}


def _short(word: str) -> str:
    if " " in word and word.lstrip().startswith("-"):  # options for another command
        return ABSOLUTE.sub(lambda path: _short(path.group()), word)
    name, equals, path = word.rpartition("=")
    whole = Path(os.path.abspath(path))
    return name + equals + str(whole.relative_to(Path.cwd()) if Path.cwd() in whole.parents else whole.name)


def sha256_of_all(paths: Iterable[Path]) -> str:
    """A checksum of files, by name and content, in whatever order they come."""
    return hashlib.sha256("".join(sorted(f"{path.name} {sha256(path)}\n" for path in paths)).encode()).hexdigest()


@functools.lru_cache(maxsize=None)
def sha256_of_training(data: Path) -> str:
    """The checksum of a data folder's training set and dictionaries."""
    return sha256_of_all([*data.glob("train*"), *data.glob("dict.*")])
