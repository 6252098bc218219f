"""Bundles: folders with weights, dictionaries, BPE codes and checksums, made by ``fastdiss-export``."""

import json
from pathlib import Path

from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig
from fairseq.data.encoders.subword_nmt_bpe import SubwordNMTBPE, SubwordNMTBPEConfig

from .compat import FastDiSSError
from .generation.config import decoding_defaults
from .tools.records import sha256

WEIGHTS = "model.pt"
DESCRIPTION = "bundle.json"
CODES = "codes"


class Bundle:
    """A verified bundle.

    Attributes:
        folder: where it is.
        description: what ``bundle.json`` says.
        languages: the source and target languages of the data.

    Raises:
        FastDiSSError: no bundle, or a file that is missing or not the one exported.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.description = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
            expected = self.description["sha256"]
        except (OSError, ValueError, KeyError) as error:
            raise FastDiSSError(f"{folder} is no bundle: {error}") from None
        for name, checksum in expected.items():
            if not (self.folder / name).is_file():
                raise FastDiSSError(f"{folder} lacks {name}")
            if sha256(self.folder / name) != checksum:
                raise FastDiSSError(f"{self.folder / name} is not the file that was exported: its checksum differs")
        self.languages = self.description["source_lang"], self.description["target_lang"]

    @staticmethod
    def is_at(folder) -> bool:
        return (Path(folder) / DESCRIPTION).is_file()

    def task_options(self) -> dict:
        """What the task is told instead of what it was told in training: languages, and decoding's defaults."""
        return {"source_lang": self.languages[0], "target_lang": self.languages[1], **decoding_defaults()}

    def text_codecs(self):
        """fairseq's tokeniser and BPE for raw text; None twice where the bundle has no codes, so that text comes
        and goes as the model's tokens, separated by spaces."""
        codes = self.folder / CODES
        if not codes.is_file():
            return None, None
        source, target = self.description.get("tokenizer_langs", self.languages)
        tokenizer = MosesTokenizer(MosesTokenizerConfig(source_lang=source, target_lang=target))
        return tokenizer, SubwordNMTBPE(SubwordNMTBPEConfig(bpe_codes=str(codes)))
