"""fairseq criterions."""

from . import fastdiss, fsdfm  # noqa: F401
