"""Writing checkpoints."""

from pathlib import Path

import torch


def write(state: dict, path: Path) -> None:
    """Write a checkpoint, which appears when it is whole.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as stream:  # torch raises no OSError where it opens the file itself
        torch.save(state, stream)
    part.replace(path)
