"""Style and types: ruff on the whole tree, mypy on the mathematics and on decoding (ruff.toml, setup.cfg)."""

import subprocess
import sys

import pytest

from conftest import ROOT


def run(tool, *arguments):
    pytest.importorskip(tool, reason=f"needs pip install {tool}")
    line = [sys.executable, "-m", tool, *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_ruff_finds_nothing():
    run("ruff", "check", ".")


def test_the_tree_is_formatted():
    run("ruff", "format", "--check", ".")


def test_types():
    run("mypy")
