"""fairseq tasks."""

from . import fastdiss  # noqa: F401
