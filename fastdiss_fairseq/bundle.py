"""Reading the folders that ``fastdiss-export`` makes: what fairseq's loading functions must be told of them."""

import json
from pathlib import Path

from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig
from fairseq.data.encoders.subword_nmt_bpe import SubwordNMTBPE, SubwordNMTBPEConfig

from .generation.config import decoding_defaults
from .tools.export import DESCRIPTION, WEIGHTS, verify


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
        verify(self.folder)
        self.weights = self.folder / WEIGHTS
        self.description = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
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
        codes = self.folder / "codes"
        if not codes.is_file():
            return None, None
        source, target = self.description.get("tokenizer_langs", self.languages)
        tokenizer = MosesTokenizer(MosesTokenizerConfig(source_lang=source, target_lang=target))
        return tokenizer, SubwordNMTBPE(SubwordNMTBPEConfig(bpe_codes=str(codes)))
