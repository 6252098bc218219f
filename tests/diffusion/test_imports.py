import ast
from pathlib import Path

import pytest

import fastdiss_fairseq.diffusion

FILES = sorted(Path(fastdiss_fairseq.diffusion.__file__).parent.glob("*.py"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_mathematics_needs_neither_fairseq_nor_networks(path):
    names = list(imported(ast.parse(path.read_text(encoding="utf-8"))))
    assert not [name for name in names if name.split(".")[0] == "fairseq" or name.startswith("..")]
