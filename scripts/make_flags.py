"""Write docs/flags.md from the dataclasses that fairseq makes the command lines of.

python scripts/make_flags.py            # writes the file
python scripts/make_flags.py --check    # exit code 1 where the file is stale
"""

import argparse
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import fastdiss_fairseq  # noqa: F401  (registers task, architectures and criteria)
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.tasks.translation import TranslationConfig
from fastdiss_fairseq.tasks.fastdiss import FastDiSSTaskConfig

FILE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"
HEAD = """# All flags

Written by `python scripts/make_flags.py` from the dataclasses in the code; a test fails where they differ. In hydra's YAML and in
`--eval-bleu-args` the names have underscores instead of hyphens and no leading `--`.

| of | give it to | read in decoding from |
| --- | --- | --- |
| [task and decoding](#task-and-decoding) | every command | the command line, or the call from Python |
| [criteria](#criterion-fastdiss_loss) | fairseq-train, fairseq-validate | nowhere |
| [architectures](#architectures) | fairseq-train | the checkpoint |
"""
TASK = """
## Task and decoding

`--task fastdiss` has all options of fairseq's `translation` task (`--source-lang`, `--eval-bleu`, `--max-source-positions`, …) and these; fairseq's `--help` stops before the
options of tasks, models and criteria, so this page has them. Of fairseq's generation options it takes `--nbest`, `--print-step`, `--retain-iter-history`,
`--iter-decode-max-iter`, `--iter-decode-with-beam`, `--iter-decode-with-external-reranker` and `--iter-decode-force-max-iter`.
"""
MODEL = """
## Architectures

`--arch NAME` sets the sizes; each can be overridden. Where the architectures differ, the second table has the defaults.
"""


def flags(config) -> dict:
    """{field: argparse action} of a configuration, as fairseq makes them."""
    parser = argparse.ArgumentParser(add_help=False)
    gen_parser_from_dataclass(parser, config)
    return {action.dest: action for action in parser._actions if action.option_strings}


def shown(action) -> str:
    """A default as one would type it; – where the text says it, since there is none to type."""
    if action.nargs == 0:
        return "off"
    return "–" if action.default in (None, "") else f"`{str(action.default)}`"


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def table(actions, default=shown) -> str:
    lines = [row("flag", "values", "default", "meaning"), "| --- | --- | --- | --- |\n"]
    for action in actions:
        kind = "" if action.nargs == 0 else getattr(action.type, "__name__", "")
        values = (
            ", ".join(map(str, action.choices)) if action.choices else {"<lambda>": "list, by commas"}.get(kind, kind)
        )
        lines.append(row(f"`{action.option_strings[0]}`", values, default(action), action.help))
    return "".join(lines)


def task_section() -> str:
    stock = {f.name: f.default for f in fields(TranslationConfig)}
    own = [a for name, a in flags(FastDiSSTaskConfig()).items() if stock.get(name, MISSING) != a.default]
    return TASK + "\n" + table(own)


def criterion_sections() -> str:
    ours = [
        name for name, kind in CRITERION_DATACLASS_REGISTRY.items() if kind.__module__.startswith("fastdiss_fairseq")
    ]
    return "".join(
        f"\n## Criterion {name}\n\n{table(flags(CRITERION_DATACLASS_REGISTRY[name]()).values())}"
        for name in sorted(ours)
    )


def model_section() -> str:
    names = [name for name, model in MODEL_REGISTRY.items() if model.__module__.startswith("fastdiss_fairseq")]
    of = {name: flags(MODEL_DATACLASS_REGISTRY[name]()) for name in names}
    every = {field: action for found in of.values() for field, action in found.items()}
    values = {field: [shown(of[n][field]) if field in of[n] else "" for n in names] for field in every}
    differing = [field for field in every if len(set(values[field])) > 1]
    first = table(every.values(), lambda a: "see below" if a.dest in differing else shown(a))
    second = row("flag", *(f"`{name}`" for name in names)) + row(*["---"] * (len(names) + 1))
    second += "".join(row(f"`{every[field].option_strings[0]}`", *values[field]) for field in differing)
    return f"{MODEL}\n{first}\n{second}"


def document() -> str:
    return HEAD + task_section() + criterion_sections() + model_section()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        FILE.write_text(document(), encoding="utf-8")
    elif not FILE.is_file() or FILE.read_text(encoding="utf-8") != document():
        sys.exit(f"{FILE} is stale: run python scripts/make_flags.py")


if __name__ == "__main__":
    main()
