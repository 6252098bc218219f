"""Mistakes that the user can mend, and how commands end at them: in one line, with no traceback before or behind it."""

import logging
import os
import re
import sys
import traceback
from types import CodeType
from typing import Optional

from fairseq.data.indexed_dataset import MMapIndexedDataset


class FastDiSSError(ValueError):
    """A mistake that the user can mend; commands show it as one line."""


def flag(name: str) -> str:
    """An option's name on the command line."""
    return f"--{name.replace('_', '-')}"


def install_error_hook() -> None:
    """Let commands end in one line instead of a traceback where the user can mend the mistake."""
    shown_by_default = sys.excepthook

    def hook(kind, error, trace):
        line = explanation(error)
        if line is None:
            shown_by_default(kind, error, trace)
        else:
            print(f"fastdiss: error: {line}", file=sys.stderr)

    sys.excepthook = hook
    # fairseq lists all of its options, thousands of characters, before the error that this explains
    logging.getLogger("fairseq.dataclass.utils").addFilter(
        lambda record: "Error when composing" not in record.getMessage()
    )


def explanation(error: BaseException) -> Optional[str]:
    """The line that tells the user what to mend; None where the fault is the program's.

    The user's are our own errors, files that cannot be opened, text in another encoding, and what fairseq's
    commands themselves refuse of their options.
    """
    if isinstance(error, UnicodeDecodeError):
        return f"the text is not UTF-8: {error}"
    if isinstance(error, (FastDiSSError, OSError)):
        return str(error)
    if "Error merging override tokenizer." in str(error):  # fairseq passes the languages on before it infers them
        return "--tokenizer moses needs to know the languages: give -s and -t, such as -s de -t en"
    missing = re.match(r"Error merging override \w+\.(\w+)=null", str(error))
    if missing:
        return f"{flag(missing.group(1))} must be given with these options"
    if not isinstance(error, (RuntimeError, AssertionError, ValueError)):
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)  # the hook's errors have been raised
    if isinstance(error, RuntimeError):  # fairseq's without an architecture says nothing
        unnamed = frame.f_code.co_name == "parse_args_and_arch"
        return "--arch must be given, such as --arch fastdiss_tiny" if unnamed else None
    return (str(error) or None) if _looks_at_options(frame.f_code) else None


def _looks_at_options(code: CodeType) -> bool:
    """Whether it is one of fairseq's commands, its choice of a checkpoint, or an optimizer's or a scheduler's look at its
    options."""
    folder, name = os.path.split(code.co_filename)
    beginning = code.co_name == "__init__" and os.path.join("fairseq", "optim") in folder
    return os.path.basename(folder) == "fairseq_cli" or name == "checkpoint_utils.py" or beginning


def drop_damaged_data_quietly() -> None:
    """Let fairseq's data files be dropped that could not be opened: they would print a traceback behind our line."""
    for kind in (MMapIndexedDataset, MMapIndexedDataset.Index):

        def close(self, stock=kind.__del__):
            if hasattr(self, "_bin_buffer_mmap"):
                stock(self)

        kind.__del__ = close
