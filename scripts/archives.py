#!/usr/bin/env python3
"""Publishers' archives: read their files; or print a checksum (``archives.py sha256 FILE``), or see that all can be read
(``archives.py check FILE``)."""

import gzip
import hashlib
import io
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

from prepare_pairs import PreparationError


def members(archive):
    """(name, binary stream) of each file in a tar archive, a zip archive or a folder."""
    path = Path(archive)
    if path.is_dir():
        for file in filter(Path.is_file, sorted(path.rglob("*"))):
            with open(file, "rb") as stream:
                yield file.relative_to(path).as_posix(), stream
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as files:
            for name in files.namelist():
                with files.open(name) as stream:
                    yield name, stream
    else:
        with tarfile.open(path) as files:
            for member in filter(tarfile.TarInfo.isfile, files):
                yield member.name, files.extractfile(member)


#: What reading a damaged archive raises.
DAMAGES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)


def check(path):
    """Read a tar archive, a zip archive or a gzipped file to its end.

    Raises:
        PreparationError: it is none, or damaged.
    """
    try:
        with open(path, "rb") as stream:
            gzipped = stream.read(2) == b"\x1f\x8b"
        if gzipped:  # a tar archive's checksum is behind its last file, too
            with gzip.open(path) as stream:
                exhaust(stream)
            return
        for _, stream in members(path):
            exhaust(stream)
    except DAMAGES as error:
        raise PreparationError(f"{path} is damaged: {error}") from None


def exhaust(stream):
    """Read a stream to its end."""
    while stream.read(1 << 20):
        pass


def read_members(archive, *layouts):
    """Lines of the files that one of the layouts names.

    Args:
        archive: a tar or zip archive, or a folder.
        layouts: collections of names; above them there may be other folders, and files may be gzipped (``.gz``).

    Returns:
        {name: list of lines} of the first layout of which all files are there.

    Raises:
        PreparationError: no archive, a damaged one, or one without the files of any layout.
    """
    if not Path(archive).exists():
        raise PreparationError(f"there is no {archive}")
    wanted, found = {name for layout in layouts for name in layout}, {}
    try:
        for path, stream in members(archive):
            name = path[:-3] if path.endswith(".gz") else path
            name = next((known for known in wanted if f"/{name}".endswith(f"/{known}")), None)
            if name is not None and name not in found:
                found[name] = lines_of(gzip.GzipFile(fileobj=stream) if path.endswith(".gz") else stream)
    except (*DAMAGES, UnicodeDecodeError) as error:
        raise PreparationError(f"{archive} is damaged: {error}") from None
    for layout in layouts:
        if set(layout) <= set(found):
            return {name: found[name] for name in layout}
    likeliest = max(layouts, key=lambda layout: len(set(layout) & set(found)))
    missing = next(name for name in likeliest if name not in found)
    raise PreparationError(f"{archive} lacks {missing}")


def lines_of(stream):
    """Lines as other tools count them: ended by line feeds alone."""
    return [line.rstrip("\r\n") for line in io.TextIOWrapper(stream, encoding="utf-8", newline="\n")]


def sha256(path):
    """The checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("sha256", "check"):
        sys.exit(__doc__)
    if sys.argv[1] == "sha256":
        print(sha256(sys.argv[2]))
    else:
        try:
            check(sys.argv[2])
        except PreparationError as error:
            sys.exit(str(error))
