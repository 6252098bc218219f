"""Reading what ``fastdiss-export`` makes: checksums, and what fairseq's loading functions must be told."""

import hashlib
import json
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig
from fairseq.data.encoders.subword_nmt_bpe import SubwordNMTBPE, SubwordNMTBPEConfig
from fairseq.dataclass.configs import CommonConfig

from .errors import FastDiSSError
from .generation.config import decoding_defaults

WEIGHTS = "model.pt"
DESCRIPTION = "bundle.json"


def sha256(path) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def opened(bundle) -> Iterator[Path]:
    """The folder of a bundle while entered: its own, or for a zip archive a temporary one.

    Raises:
        FastDiSSError: a file that is no such archive.
    """
    if not Path(bundle).is_file():
        yield Path(bundle)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(bundle) as archive:
                for member in archive.infolist():
                    if member.filename != Path(member.filename).name:
                        raise FastDiSSError(
                            f"{bundle} is no bundle: it holds {member.filename} (a checkpoint becomes one by fastdiss-export)"
                        )
                    archive.extract(member, folder)
        except (zipfile.BadZipFile, zlib.error, OSError) as error:
            raise FastDiSSError(f"{bundle} is no bundle: {error}") from None
        yield Path(folder)


def verify(folder: Path) -> dict:
    """What a bundle's description says.

    Raises:
        FastDiSSError: a file that is read of the bundle is not listed, or has not its checksum.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        expected = dict(description["sha256"])
        read = {WEIGHTS, *(f"dict.{description[side]}.txt" for side in ("source_lang", "target_lang"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FastDiSSError(f"{folder} is no bundle: {error}") from None
    if (folder / "codes").exists():
        read.add("codes")
    if read - set(expected):
        raise FastDiSSError(f"{folder / DESCRIPTION} has no checksum of {', '.join(sorted(read - set(expected)))}")
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            raise FastDiSSError(f"{folder} lacks {name}")
        if sha256(folder / name) != checksum:
            raise FastDiSSError(f"{folder / name} is not the file that was exported: its checksum differs")
    return description


class Bundle:
    """A verified bundle.

    Attributes:
        folder: where it is.
        weights: its checkpoint.
        description: what ``bundle.json`` says.
        languages: the source and target languages of the data.

    Raises:
        FastDiSSError: no bundle, or a file that is missing or not the one exported.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.weights, self.description = self.folder / WEIGHTS, verify(self.folder)
        self.languages = self.description["source_lang"], self.description["target_lang"]

    @staticmethod
    def is_at(folder) -> bool:
        return (Path(folder) / DESCRIPTION).is_file()

    def task_options(self) -> dict:
        """What the task is told instead of what it was told in training: languages, and the defaults of decoding and of
        its seed."""
        source, target = self.languages
        return {"source_lang": source, "target_lang": target, "seed": CommonConfig.seed, **decoding_defaults()}

    def text_codecs(self):
        """fairseq's tokeniser and BPE for raw text; None twice where the bundle has no codes, so that text comes
        and goes as the model's tokens, separated by spaces."""
        codes = self.folder / "codes"
        if not codes.is_file():
            return None, None
        source, target = self.description.get("tokenizer_langs", self.languages)
        options = self.description.get("moses", {})
        tokenizer = MosesTokenizer(MosesTokenizerConfig(source_lang=source, target_lang=target, **options))
        return tokenizer, SubwordNMTBPE(SubwordNMTBPEConfig(bpe_codes=str(codes)))
