"""fairseq models."""

from . import fastdiss  # noqa: F401
