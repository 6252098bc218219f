"""Decode a split over a grid of settings and write results, tables and plots.

    fastdiss-sweep data-bin/multi30k_de_en --path runs/both/checkpoint_last.pt --systems scp+mans \\
        --reference data-bin/multi30k_de_en/raw/test.en --steps 1 2 5 20 --output runs/sweep

Each model is loaded once.  Cells that FOLDER/results.json has, of the same data and references, are not decoded again (by
other metrics their text is scored), so an interrupted sweep goes on, and several calls (another grid, other checkpoints)
add to one folder.  ``--outputs cmlm:10=generate.txt`` scores the output of fairseq-generate from any other model.
"""

import argparse
import itertools
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from tqdm import tqdm

from fairseq import checkpoint_utils, utils
from fairseq.data import data_utils

from ..bundle import sha256
from ..compat import device
from ..diffusion.sampling import SELF_CONDITIONING
from ..errors import FastDiSSError, flag
from ..generation.config import (
    CHOICES,
    DEPLOYMENTS,
    ESTIMATE_NAMES,
    REPEATS,
    SIZE_BY_SIZE,
    SOLVER_NAMES,
    decoding_defaults,
    positive,
)
from ..generation.deployment import Deployment
from ..generation.generator import check_models
from ..loading import check_reranker, data_folder, load as load_for, load_reranker, tokenised_as, weights_of
from ..models.fsdfm import averaged_weights
from . import report, scoring
from .command import run_as_command
from .memory import peak_memory_mb
from .records import Records, circumstances, clock, count_parameters, sha256_of_all

#: The settings of a cell, and the option of decoding that each is.
SETTINGS = {
    "steps": "decoding_steps",
    "self_conditioning": "decoding_self_conditioning",
    "solver": "decoding_solver",
    "estimate": "decoding_estimate",
    "noise_factor": "decoding_noise_factor",
    "told_noise_factor": "decoding_told_noise_factor",
    "temperature": "decoding_temperature",
    "length_beam": "length_beam",
    "noise_beam": "noise_beam",
    "repeats": "decoding_repeats",
    "length_factor": "decoding_length_factor",
    "choice": "decoding_choice",
}
DEFAULTS = decoding_defaults()
CHECKPOINT = re.compile(r"'path': '([^']+)'")  # in the configuration that fairseq-generate logs
#: What tells cells apart, and what must not have changed of one that is there.
KEY_FIELDS = ("benchmark", "split", "system", "seed", *SETTINGS, "decoding_seed")
SAME = ("checkpoint_sha256", "data_sha256", "reference_sha256", "reranker_sha256", "post_process", "detokenize")


class Loaded(NamedTuple):
    """A checkpoint ready to decode: ``models``, its own and perhaps a reranker; ``facts`` are the fields that all its
    records share, ``options`` those of decoding that all its cells do."""

    models: list
    task: object
    facts: Dict[str, object]
    options: Dict[str, object]

    def models_for(self, cell: Dict[str, object]) -> list:
        """Those that decode a cell."""
        return self.models if cell["choice"] == "ar" else self.models[:1]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder made by fairseq-preprocess")
    parser.add_argument("--path", nargs="+", default=[], help="FastDiSS checkpoints")
    parser.add_argument(
        "--systems", nargs="+", metavar="NAME", help="their names (default: from the options trained with)"
    )
    parser.add_argument("--reranker", metavar="FILE", help="autoregressive fairseq checkpoint, for --choice ar")
    parser.add_argument(
        "--outputs", nargs="+", default=[], metavar="SYSTEM[:STEPS]=FILE", help="outputs of fairseq-generate"
    )
    parser.add_argument(
        "--output-repeats",
        nargs="+",
        default=["keep"],
        choices=REPEATS,
        help="words that these say several times in a row: keep, or merge to one (default: %(default)s)",
    )
    parser.add_argument(
        "--deployment",
        nargs="+",
        default=[],
        choices=DEPLOYMENTS,
        help="decode with --decoding-NAME of each; systems are named after it",
    )
    parser.add_argument(
        "--early-exit", action="store_true", help="decode with --early-exit; systems are named after it"
    )
    parser.add_argument("--subset", default="test", help="split to decode (default: %(default)s)")
    parser.add_argument("--reference", type=Path, required=True, help="raw reference, one sentence a line")
    parser.add_argument("--output", type=Path, required=True, help="folder for results, tables and plots")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["BLEU", "chrF"],
        help=f"of {', '.join(scoring.METRICS)}; the first is plotted (default: %(default)s)",
    )
    parser.add_argument(
        "--post-process",
        default="subword_nmt",
        help="as in fairseq-generate, joins pieces of words (default: %(default)s)",
    )
    parser.add_argument(
        "--detokenize",
        metavar="LANG",
        help="language for undoing Moses tokenisation (default: that of the data's target text; of --outputs, where they "
        "look tokenised), or none",
    )
    parser.add_argument(
        "--baseline", metavar="SYSTEM", help="test the other systems against this one (paired bootstrap)"
    )
    parser.add_argument("--samples", type=int, default=0, help="print so many sample outputs")
    parser.add_argument("--batch-size", type=int, default=128, help="sentences a batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of decoding's noise (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    grid = parser.add_argument_group("grid", "each combination is a cell")
    shown = {"nargs": "+", "help": "default: %(default)s"}
    grid.add_argument("--steps", type=int, default=[1, 2, 3, 5, 10, 20], **shown)
    grid.add_argument(
        "--self-conditioning", nargs="+", default=[None], choices=SELF_CONDITIONING, help="default: fairseq-generate's"
    )
    grid.add_argument("--solver", nargs="+", default=[None], choices=SOLVER_NAMES, help="likewise")
    grid.add_argument("--estimate", nargs="+", default=[None], choices=ESTIMATE_NAMES, help="likewise")
    grid.add_argument("--noise-factor", type=float, nargs="+", default=[None], help="default: that of training")
    grid.add_argument(
        "--told-noise-factor", type=float, nargs="+", default=[None], help="default: that of fairseq-generate"
    )
    grid.add_argument("--temperature", type=float, nargs="+", default=[None], help="likewise")
    grid.add_argument("--length-beam", type=int, default=[1], **shown)
    grid.add_argument("--noise-beam", type=int, default=[DEFAULTS["noise_beam"]], **shown)
    grid.add_argument("--repeats", default=[DEFAULTS["decoding_repeats"]], choices=REPEATS, **shown)
    grid.add_argument("--length-factor", type=float, default=[DEFAULTS["decoding_length_factor"]], **shown)
    grid.add_argument("--choice", default=[DEFAULTS["decoding_choice"]], choices=CHOICES, **shown)
    return parser


def cells(args) -> Iterator[Dict[str, object]]:
    """The settings of the grid; a single candidate leaves no choice, so it is decoded once."""
    for values in itertools.product(*(getattr(args, name) for name in SETTINGS)):
        cell = dict(zip(SETTINGS, values))
        if cell["length_beam"] * cell["noise_beam"] == 1:
            if cell["choice"] != args.choice[0]:
                continue
            cell["choice"] = "score"
        yield cell


def load(path: str, args, facts: Dict[str, object]) -> Loaded:
    """Load a checkpoint for ``args.data`` onto the device.

    Raises:
        FastDiSSError: as the common loader, or the checkpoint of another model.
    """
    changes = {f"decoding_{name}": True for name in args.deployment}
    models, _, task = load_for(path, args.data, seed=args.seed, eval_bleu=False, **changes)
    check_models(models, "score")
    if args.reranker:
        models += load_reranker(args.reranker, task)
        check_models(models, "ar")
    models = [model.to(device(args)).eval() for model in models]
    return Loaded(models, task, facts, {"early_exit": args.early_exit})


def facts_of(path: str) -> Dict[str, object]:
    """What a checkpoint says of itself."""
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    return {
        "system": system_name(state["cfg"]["criterion"], state["cfg"]["model"]),
        "seed": state["cfg"]["common"]["seed"],
        "updates": state["optimizer_history"][-1]["num_updates"],
        "parameters": count_parameters(averaged_weights(state["model"])),
        "checkpoint": Path(path).name,
        "checkpoint_sha256": sha256(path),
    }


def system_name(criterion, model) -> str:
    """The system's name from what it was trained with."""
    if criterion.get("_name") == "fsdfm_loss":
        return "fsdfm+steps" if model["step_aware"] else "fsdfm"
    parts = [name for name in ("scp", "mans") if not criterion.get(f"no_{name}")]
    return "+".join(parts) or "standard"


def batches(task, args) -> List[dict]:
    """All batches of the split, on the device, longest sentences together."""
    task.load_dataset(args.subset)
    iterator = task.get_batch_iterator(task.dataset(args.subset), max_sentences=args.batch_size)
    found = list(iterator.next_epoch_itr(shuffle=False))
    return utils.move_to_cuda(found) if device(args).type == "cuda" else found


def generator_for(loaded: Loaded, cell: Dict[str, object]):
    """The plugin's generator with the settings of a cell."""
    request = Namespace(**loaded.options, **{SETTINGS[name]: value for name, value in cell.items()})
    return loaded.task.build_generator(loaded.models_for(cell), request)


def completed(loaded: Loaded, cell: Dict[str, object]) -> Dict[str, object]:
    """The cell as it is decoded: what was left to its default filled in, what the model does not have None."""
    decoding = generator_for(loaded, cell).decoding
    known = {**vars(decoding), **vars(decoding.sampler)}
    return {name: known.get(name) for name in cell}


def decode(loaded: Loaded, found: List[dict], cell: Dict[str, object], args, progress) -> tuple:
    """Decode all batches: (lines of words in corpus order, mean evaluations, seconds)."""
    task, models, generator = loaded.task, loaded.models_for(cell), generator_for(loaded, cell)
    dictionary, strip = task.target_dictionary, generator.symbols_to_strip_from_output
    lines, evaluations = {}, 0
    for batch in found if set(SIZE_BY_SIZE) & set(args.deployment) else found[:1]:
        generator.generate(models, batch)  # warm-up, not timed
    started = clock(args)
    for batch in found:
        for number, hypotheses in zip(batch["id"].tolist(), generator.generate(models, batch)):
            lines[number] = dictionary.string(hypotheses[0]["tokens"], args.post_process, extra_symbols_to_ignore=strip)
            evaluations += hypotheses[0]["steps"]
        progress.update(len(batch["id"]))
    return [lines[i] for i in sorted(lines)], evaluations / len(lines), clock(args) - started


def measure(loaded: Loaded, found: List[dict], asked: dict, args, progress) -> tuple:
    """One cell, as it was asked for: its record and its detokenised hypotheses."""
    cell = completed(loaded, asked)
    lines, evaluations, seconds = decode(loaded, found, asked, args, progress)
    hypotheses = scoring.detokenise(lines, args.detokenize or tokenised_as(args.data, loaded.task.cfg.target_lang))
    record = {
        **loaded.facts,
        **cell,
        "candidates": cell["length_beam"] * cell["noise_beam"],
        "evaluations": round(evaluations, 2),
        "decoding_seed": args.seed,
        "seconds": round(seconds, 3),
        "sentences_per_second": round(len(lines) / seconds, 2),
        "batch_size": args.batch_size,
        "peak_memory_mb": peak_memory_mb(device(args)),
    }
    return record, hypotheses


def common(args) -> Dict[str, object]:
    """What all records of a call share: what was decoded first."""
    return {
        "benchmark": args.data.resolve().name,
        "split": args.subset,
        "data_sha256": sha256_of_all(args.data.glob(f"{args.subset}.*")),
        "reference_sha256": sha256(args.reference),
        "post_process": args.post_process,
        "detokenize": args.detokenize,
        "deployment": "+".join(args.deployment) or None,
        "early_exit": args.early_exit,
        **circumstances("fastdiss-sweep", device(args)),
    }


def scored(hypotheses: List[str], references: List[str], args) -> Dict[str, object]:
    """The fields of a record that say how good the hypotheses are; the first metric leads."""
    scores = scoring.score(hypotheses, [references], args.metrics)
    lead = scores[args.metrics[0]]
    return {
        "metric": args.metrics[0],
        "value": lead.value,
        "signature": lead.signature,
        "scores": {name: found._asdict() for name, found in scores.items()},
    }


def parts_of(spec: str) -> Tuple[str, Optional[int], str]:
    """System, steps and file of an ``--outputs`` entry."""
    name, equals, path = spec.partition("=")
    system, _, steps = name.partition(":")
    if not equals or not system or (steps and not steps.isdigit()):
        raise FastDiSSError(f"--outputs takes SYSTEM[:STEPS]=FILE, not '{spec}'")
    return system, int(steps) if steps else None, path


def language_of(hypotheses: List[str], references: List[str], args) -> Optional[str]:
    """The language to undo the tokenisation of an output in: where none is named that of the data's target text, if it
    looks tokenised and the references do not."""
    if args.detokenize or not scoring.look_tokenised(hypotheses, references):
        return args.detokenize
    return tokenised_as(args.data, data_utils.infer_language_pair(str(args.data))[1])


def external(spec: str, repeats: str, references: List[str], args) -> tuple:
    """Record and hypotheses of an ``--outputs`` entry, its repeats kept or merged; where the file holds
    fairseq-generate's log too, with its time and what the checkpoint says of itself."""
    system, steps, path = parts_of(spec)
    lines = scoring.read_hypotheses(path)
    language = language_of(lines, references, args)
    hypotheses = scoring.text_of(lines, language, repeats)
    log = "\n".join(scoring.read_lines(path))
    seconds, rate = report.timing(log)
    checkpoint = CHECKPOINT.search(log)
    known = checkpoint is not None and Path(checkpoint.group(1)).is_file()
    record = {
        **(facts_of(checkpoint.group(1)) if known else {"seed": None, "updates": None}),
        "system": system,
        "steps": steps,
        "deployment": None,
        "early_exit": None,
        "candidates": None,
        "self_conditioning": None,
        "repeats": repeats,
        "detokenize": language,
        "seconds": seconds,
        "sentences_per_second": rate,
    }
    return record, hypotheses


class Sweep:
    """The output folder: records, hypotheses, references, tables and plots."""

    def __init__(self, args):
        self.args, self.common = args, common(args)
        self.reranker = sha256(args.reranker) if args.reranker else None
        self.references = scoring.read_lines(args.reference)
        for name in ("hypotheses", "references"):
            (args.output / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.reference, self.references_path(self.common))
        self.records = on_file(args)

    def add(self, record: dict, hypotheses: List[str]) -> dict:
        """Score and keep, with what the same text was scored by before; the text first, so that a record always has its
        text."""
        found = {**self.common, **record, **scored(hypotheses, self.references, self.args)}
        before = self.records.get(found)
        if before is not None and self.is_text_of(before, hypotheses, found):
            found["scores"] = {**before["scores"], **found["scores"]}
        self.text_path(found).write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
        self.records.add(found)
        return found

    def is_text_of(self, before: dict, hypotheses: List[str], now: dict) -> bool:
        """Whether a record is of the same text and references."""
        path, same = self.text_path(before), before["reference_sha256"] == now["reference_sha256"]
        return same and path.exists() and scoring.read_lines(path) == hypotheses

    def text_path(self, record: dict) -> Path:
        return self.args.output / "hypotheses" / f"{self.records.key(record)}.txt"

    def references_path(self, record: dict) -> Path:
        return self.args.output / "references" / f"{record['reference_sha256'][:16]}.txt"

    def kept(self, facts: Dict[str, object], cell: Dict[str, object]) -> Optional[dict]:
        """The record of this very checkpoint's decoding of this very split so, where its text is there."""
        wanted = {**self.common, **facts, **cell, **self.choosing(cell), "decoding_seed": self.args.seed}
        found = self.records.get(wanted)
        if found is None or not self.text_path(found).exists():
            return None
        return found if all(found.get(name) == wanted[name] for name in SAME) else None

    def choosing(self, cell: Dict[str, object]) -> Dict[str, object]:
        return {"reranker_sha256": self.reranker if cell["choice"] == "ar" else None}

    def decode_checkpoint(self, path: str, facts: Dict[str, object]) -> None:
        """Decode the cells of one checkpoint that are missing, and score those that lack a metric."""
        loaded, missing = load(path, self.args, facts), []
        distinct = {tuple(completed(loaded, cell).items()): cell for cell in cells(self.args)}
        for full, cell in distinct.items():
            kept = self.kept(facts, dict(full))
            if kept is None:
                missing.append(cell)
            elif not set(self.args.metrics) <= set(kept["scores"]):
                self.add(kept, scoring.read_lines(self.text_path(kept)))
        if not missing:
            return
        found = batches(loaded.task, self.args)
        sentences = sum(len(batch["id"]) for batch in found)
        if sentences != len(self.references):
            raise FastDiSSError(f"{self.args.reference} has {len(self.references)} lines, the split {sentences}")
        with tqdm(total=sentences * len(missing), unit="sentence", desc=facts["system"]) as progress:
            for cell in missing:
                record, text = measure(loaded, found, cell, self.args, progress)
                record = self.add({**record, **self.choosing(cell)}, text)
                progress.set_postfix_str(f"K = {cell['steps']}: {record['metric']} {record['value']}")

    def report(self) -> None:
        """Write tables and plots of all that the folder has; print the tables, and samples of this call's references."""
        args, text_of = self.args, lambda record: scoring.read_lines(self.text_path(record))
        references_of = lambda record: scoring.read_lines(self.references_path(record))
        report.write(self.records, text_of, references_of, args.output, args.metrics[0], args.baseline)
        print((args.output / "table.md").read_text(encoding="utf-8"))
        shown = [r for r in self.records if r.get("reference_sha256") == self.common["reference_sha256"]]
        report.print_samples(shown, text_of, self.references, args.samples)


def check(args) -> None:
    """Raise FastDiSSError where the options cannot work, before hours of decoding, or of training."""
    scoring.check_metrics(args.metrics)
    if not any(data_folder(args.data).glob(f"{args.subset}.*")):
        raise FastDiSSError(f"{args.data} has no split {args.subset}")
    Deployment(frozenset(f"decoding_{name}" for name in args.deployment))
    try:
        data_utils.post_process("", args.post_process)
    except NotImplementedError:
        raise FastDiSSError(f"fairseq knows no --post-process {args.post_process}") from None
    if args.systems and len(args.systems) != len(args.path):
        raise FastDiSSError(f"{len(args.systems)} names for {len(args.path)} checkpoints")
    for name in ("steps", "length_beam", "noise_beam"):
        positive(flag(name), min(getattr(args, name)))
    check_reranker(args.choice, args.reranker)
    if args.reranker:
        weights_of(args.reranker)
    if "score" not in args.choice and max(args.length_beam) * max(args.noise_beam) == 1:
        raise FastDiSSError(f"--choice {args.choice[0]} needs several candidates: --length-beam, --noise-beam")
    names = [parts_of(spec)[:2] for spec in args.outputs]
    if len(set(names)) < len(names):
        raise FastDiSSError("two of --outputs have the same name and steps: each needs its own")
    for path in dict.fromkeys(parts_of(spec)[2] for spec in args.outputs):
        scoring.warn_of_pieces(path, scoring.read_hypotheses(path))
    scoring.read_lines(args.reference)
    if not args.path and not args.outputs:
        raise FastDiSSError("nothing to do: give checkpoints (--path) or outputs (--outputs)")


def called(system: str, args) -> str:
    """A system's name in this call."""
    return ", ".join([system, *args.deployment, *["early exit"] * args.early_exit])


def check_baseline(args, systems: Iterable[str]) -> None:
    """Raise FastDiSSError where the baseline is none of these systems, of the outputs or of what is on file."""
    known = [*systems, *(parts_of(spec)[0] for spec in args.outputs), *(r["system"] for r in on_file(args))]
    if args.baseline and args.baseline not in known:
        raise FastDiSSError(f"there is no --baseline {args.baseline} (of {', '.join(dict.fromkeys(known))})")


def on_file(args) -> Records:
    return Records(args.output / "results.json", KEY_FIELDS, "scores")


def identified(args) -> List[Tuple[str, Dict[str, object]]]:
    """The checkpoints, and what each says of itself, with the name that it is given.

    Raises:
        FastDiSSError: two of one name and training seed, which would take each other's place.
    """
    found, names = [], {}
    for path, name in itertools.zip_longest(map(weights_of, args.path), args.systems or []):
        facts = facts_of(path)
        facts["system"] = called(name or facts["system"], args)
        other = names.setdefault((facts["system"], facts["seed"]), path)
        if str(other) != str(path):
            raise FastDiSSError(f"{other} and {path} are both {facts['system']}: name them by --systems")
        found.append((path, facts))
    return found


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    check(args)
    checkpoints = identified(args)
    check_baseline(args, [facts["system"] for _, facts in checkpoints])
    sweep = Sweep(args)
    for path, facts in checkpoints:
        sweep.decode_checkpoint(path, facts)
    for spec, repeats in itertools.product(args.outputs, args.output_repeats):
        sweep.add(*external(spec, repeats, sweep.references, args))
    sweep.report()


def cli_main():
    run_as_command(main, goes_on=True)
