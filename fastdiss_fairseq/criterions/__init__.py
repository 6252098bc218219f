"""fairseq criterions."""

from . import fastdiss  # noqa: F401
