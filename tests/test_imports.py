"""The package's layers: imports run one way (docs/extending.md)."""

import ast
from pathlib import Path

import pytest

import fastdiss_fairseq

PACKAGE = Path(fastdiss_fairseq.__file__).parent
#: Each imports of the package only what stands before it.
LAYERS = (
    *(
        "errors",
        "compat",
        "diffusion",
        "flow",
        "modules",
        "models",
        "generation",
        "bundle",
        "loading",
        "optim",
        "criterions",
    ),
    *("tasks", "safety", "translator", "tools"),
)
#: All that the mathematics needs besides itself.
MATHEMATICS = {"torch", "numpy", "bisect", "dataclasses", "functools", "math", "typing", "zlib"}
#: Imports inside functions that run the other way.
DEFERRED = {("models/base.py", "bundle")}  # fairseq's hub interface is a method of the model, and decodes


def imports(path):
    """The modules that a file imports: those of the package as "layer.module", others as they are called."""
    here = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module, node.module.split(".")[0] == PACKAGE.name
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1]
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield ".".join((*above, name)), True


def layer(name):
    return name.split(".")[0]


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem in LAYERS]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    name = path.relative_to(PACKAGE).as_posix()
    below = LAYERS[: LAYERS.index(layer(name.replace("/", ".").replace(".py", ""))) + 1]
    upward = {layer(other) for other, ours in imports(path) if ours and layer(other) not in below}
    assert not {(name, other) for other in upward} - DEFERRED


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent.name in ("diffusion", "flow")], ids=lambda path: path.name
)
def test_the_mathematics_needs_torch_and_numpy_alone(path):
    others = {layer(name) for name, ours in imports(path) if not ours}
    used = {layer(name) for name, ours in imports(path) if ours}
    assert others <= MATHEMATICS and used <= {"diffusion", path.parent.name}
