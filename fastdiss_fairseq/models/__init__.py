"""fairseq models."""

from . import fastdiss, fsdfm  # noqa: F401
