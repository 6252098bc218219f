import ast
from pathlib import Path

import pytest

import fastdiss_fairseq

PACKAGE = Path(fastdiss_fairseq.__file__).parent
#: What each folder of mathematics may import of the package besides itself.
ALLOWED = {"diffusion": (), "flow": ("..diffusion.noise",)}
FILES = [path for folder in ALLOWED for path in sorted((PACKAGE / folder).glob("*.py"))]


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_mathematics_needs_neither_fairseq_nor_networks(path):
    names = set(imported(ast.parse(path.read_text(encoding="utf-8")))) - set(ALLOWED[path.parent.name])
    assert not [name for name in names if name.split(".")[0] == "fairseq" or name.startswith("..")]
