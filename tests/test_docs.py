"""What the documentation says is true: commands and Python run, messages and flags exist, links lead somewhere."""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ENVIRONMENT, ROOT
from fairseq.options import parse_args_and_arch

from fastdiss_fairseq.tools import ablate
from fastdiss_fairseq.tools.records import FIELDS

DOCS = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "examples" / "serving").glob("*.md"), ROOT / "CONTRIBUTING.md"])
names = lambda pages: [str(page.relative_to(ROOT)) for page in pages]


def blocks(page, language):
    """The fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(arguments, cwd):
    return subprocess.run(arguments, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_flags_are_those_of_the_dataclasses():
    spec = importlib.util.spec_from_file_location("make_flags", ROOT / "scripts" / "make_flags.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.FILE.read_text(encoding="utf-8") == script.document(), "stale: run python scripts/make_flags.py"


WITH_PYTHON = [page for page in DOCS if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=names(WITH_PYTHON))
def test_python_blocks_run(page):
    done = run([sys.executable, "-c", "\n".join(blocks(page, "python"))], ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def checkout(tmp_path):
    """A folder in which the documented commands find what a checkout has, but write nothing into ours."""
    for name in ("models", "fastdiss_fairseq", "examples", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def programs(tmp_path_factory):
    """A PATH on which the package's commands are those of this checkout, installed or not."""
    folder = tmp_path_factory.mktemp("bin")
    entry_points = re.findall(r'"(fastdiss-\w+) = ([\w.]+):(\w+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    for name, module, function in entry_points:
        program = folder / name
        program.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
        program.chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


WITH_BASH = [page for page in DOCS if blocks(page, "bash")]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BASH, ids=names(WITH_BASH))
def test_commands_run(page, checkout, programs):
    environment = {**ENVIRONMENT, "PATH": programs, "PYTHONPATH": str(ROOT)}
    for block in blocks(page, "bash"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


PAGES = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "examples").rglob("*.md")), *DOCS]


def indented_commands():
    """(page, words) of the indented commands of fairseq and of this package."""
    for page in dict.fromkeys(PAGES):
        text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
        for line in re.findall(r"^ {4,}(?:srun .*?)?((?:fairseq|fastdiss)-.*)$", text, re.MULTILINE):
            words = shlex.split(line.split(" >")[0].replace(" ...", ""), comments=True)
            yield str(page.relative_to(ROOT)), words


COMMANDS = list(indented_commands())


def parser_of(name):
    if name.startswith("fastdiss-"):
        module = {"fastdiss-score": "scoring"}.get(name, name.split("-")[1])
        return importlib.import_module(f"fastdiss_fairseq.tools.{module}").get_parser()
    options = importlib.import_module("fairseq.options")
    kinds = {"fairseq-train": "training", "fairseq-validate": "validation", "fairseq-generate": "generation"}
    return getattr(options, f"get_{kinds[name]}_parser")()


@pytest.mark.parametrize("page,words", COMMANDS, ids=[f"{page}-{words[0]}" for page, words in COMMANDS])
def test_indented_commands_are_understood(page, words):
    """They take too long to run: each option must exist and take its value."""
    name, *arguments = words
    if name == "fairseq-hydra-train":
        config = dict(word.split("=", 1) for word in arguments)["--config-dir"].replace("$PWD", str(ROOT))
        assert Path(config, "fastdiss.yaml").exists()
    elif name.startswith("fastdiss-"):
        parser_of(name).parse_args(arguments)
    else:
        arguments = [str(ROOT / word) if word == "fastdiss_fairseq" else word for word in arguments]
        parse_args_and_arch(parser_of(name), arguments)


SCRIPT = ROOT / "examples" / "translation" / "multi30k" / "tables.sh"
TABLES = (
    re.search(r"^# TABLE: ((?:.*\n)+?)# OUTPUT", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    .group(1)
    .replace("#", " ")
    .split()
)


@pytest.mark.parametrize("table", TABLES)
def test_commands_that_make_a_table_are_understood(table):
    """They take hours to run: each option must exist and take its value, those of trainings too."""
    done = subprocess.run(
        ["bash", str(SCRIPT), table], env={**ENVIRONMENT, "DRY_RUN": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    for name, *arguments in (words for words in lines if words[0].startswith("fastdiss-")):
        args = parser_of(name).parse_args(arguments)
        if name == "fastdiss-ablate":
            ablate.check(args)
            ablate.check_trainings(args, ablate.trainings(args))
    assert any(words[0] == "fastdiss-sweep" for words in lines)


def test_commands_for_a_gpu_are_understood():
    script = ["bash", str(ROOT / "scripts" / "check_gpu.sh"), "out"]
    done = subprocess.run(
        script, env={**ENVIRONMENT, "DRY_RUN": "1", "AR": "ar.pt"}, capture_output=True, text=True, check=True
    )
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    benchmarks = [parser_of(name).parse_args(rest) for name, *rest in lines if name == "fastdiss-benchmark"]
    assert [args.parts[0] for args in benchmarks] == ["agreement", "decoding", "training"]
    assert [args.ar for args in benchmarks] == [None, "ar.pt", "ar.pt"]
    (generate,) = [rest for name, *rest in lines if name == "fairseq-generate"]
    generate[generate.index("fastdiss_fairseq")] = str(ROOT / "fastdiss_fairseq")
    assert parse_args_and_arch(parser_of("fairseq-generate"), generate).decoding_cuda_graphs


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_script_for_a_gpu_says_that_there_is_none():
    environment = {**ENVIRONMENT, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "check_gpu.sh")], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "check_gpu.sh: there is no torch that sees a GPU (is the environment active? . .venv/bin/activate)\n",
    )


def test_the_documentation_has_commands():
    assert {"fairseq-train", "fairseq-generate", "fastdiss-sweep"} <= {words[0] for _, words in COMMANDS}


def texts():
    """All string constants of the package, f-strings with a line break where a value goes."""
    for path in (ROOT / "fastdiss_fairseq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\n" for part in node.values)


def test_messages_are_those_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    ours = page.split("## fairseq, torch and pip")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", ours, re.MULTILINE)
    assert len(messages) > 25
    code = "\0".join(texts())
    lost = [message for message in messages if not all(part.strip() in code for part in message.split("…"))]
    assert lost == []


LINKED = [
    *dict.fromkeys(PAGES),
    ROOT / "results" / "README.md",
    *(ROOT / "models").glob("*/README.md"),
    ROOT / "CHANGELOG.md",
]


@pytest.mark.parametrize("page", LINKED, ids=names(LINKED))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        aim = (page.parent / file).resolve() if file else page
        assert aim.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", aim.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in anchors, target


RESULTS = sorted((ROOT / "results").glob("*.json"))
CURVES = [path for path in RESULTS if path.stem.startswith("memory_") or path.stem.endswith("_noise_levels")]


@pytest.mark.parametrize("path", [path for path in RESULTS if path not in CURVES], ids=lambda path: path.stem)
def test_results_are_records_that_any_script_can_read(path):
    records = json.loads(path.read_text(encoding="utf-8"))
    assert records and all(set(FIELDS) <= set(record) for record in records)
    assert not any("/root/" in (record["command"] or "") or "/work/" in (record["command"] or "") for record in records)


def test_results_are_indexed():
    index = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    lost = [path.stem for path in RESULTS if f"`{path.stem}`" not in index]
    assert lost == []
