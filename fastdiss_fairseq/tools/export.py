"""Make a folder from a checkpoint that fairseq's commands take as data folder and model at once.

    fastdiss-export runs/both/checkpoint_last.pt --data data-bin/multi30k_de_en --output models/multi30k_de_en

FOLDER gets model.pt (weights in half precision, no optimizer state, no paths), the dictionaries, the BPE
codes and bundle.json with languages, sizes, versions and SHA-256 checksums; ``--verify`` checks them.
``--output NAME.zip`` is the same in one file, which Python takes; fairseq's commands need it unpacked.
"""

import argparse
import json
import logging
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from omegaconf import OmegaConf, open_dict

from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.data import Dictionary, data_utils

from ..bundle import DESCRIPTION, WEIGHTS, opened, sha256, verify
from ..errors import FastDiSSError
from ..loading import prepared_with, tokenised_as
from ..models.base import fingerprint
from ..models.config import ARCHITECTURES
from ..models.fsdfm import averaged_weights
from . import checkpoints
from .command import run_as_command
from .records import count_parameters, versions


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdiss-export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--data", type=Path, help="the data folder it was trained on: dictionaries and codes")
    parser.add_argument(
        "--codes", type=Path, help="subword-nmt's BPE codes (default: the file codes in the data folder)"
    )
    parser.add_argument("--output", type=Path, help="folder to make, or NAME.zip")
    parser.add_argument("--float32", action="store_true", help="keep full precision")
    parser.add_argument("--verify", type=Path, metavar="BUNDLE", help="check the checksums of a bundle instead")
    return parser


def slim(state: dict, half: bool, languages: Sequence[str]) -> dict:
    """What decoding needs of a checkpoint: options without paths or autocast, with its languages, and weights."""
    cfg = state["cfg"]
    with open_dict(cfg):
        cfg["task"]["data"] = ""
        cfg["common"]["user_dir"] = "fastdiss_fairseq"
        for name in {"tensorboard_logdir", "log_file", "aim_repo"} & set(cfg["common"]):
            cfg["common"][name] = None
        cfg["model"]["autocast"] = "none"  # how it was trained; many CPUs are slow in bfloat16
        cfg["model"]["source_lang"], cfg["model"]["target_lang"] = languages
        cfg["checkpoint"]["save_dir"] = "checkpoints"
        cfg["checkpoint"]["restore_file"] = "checkpoint_last.pt"
        cfg["checkpoint"]["finetune_from_model"] = None
    weights = {
        name: value.half() if half and value.is_floating_point() else value
        for name, value in averaged_weights(state["model"]).items()
    }
    history = {name: state[name] for name in ("optimizer_history", "extra_state")}  # updates and epochs
    history["extra_state"] = {"train_iterator": history["extra_state"]["train_iterator"]}
    empty = {"args": None, "last_optimizer_state": None, "task_state": {}}
    return {**empty, **history, "cfg": OmegaConf.to_container(cfg), "model": weights}


def export(checkpoint: Path, data: Path, folder: Path, half: bool = True, codes: Optional[Path] = None) -> dict:
    """Make the bundle; returns its description.

    Raises:
        FastDiSSError: no such checkpoint, one of another model, a data folder without dictionaries, or words in pieces
            without their codes.
    """
    if not checkpoint.is_file():
        raise FastDiSSError(f"no checkpoint {checkpoint}")
    state = load_checkpoint_to_cpu(str(checkpoint))
    arch = getattr(state["cfg"]["model"], "_name", None)
    if arch not in ARCHITECTURES:
        raise FastDiSSError(f"{checkpoint} is the checkpoint of a {arch}, not a FastDiSS model")
    if not data.is_dir():
        raise FastDiSSError(f"no data folder {data}")
    languages = languages_of(state["cfg"], data)
    files = [data / f"dict.{language}.txt" for language in languages]
    check_dictionaries(state["model"], files)
    codes = codes or data / "codes"
    if codes.is_file():
        files.append(codes)
    elif codes != data / "codes" or "@@ " in files[-1].read_text(encoding="utf-8"):
        raise FastDiSSError(f"no BPE codes {codes}, and the words come in pieces: give subword-nmt's by --codes")
    elif "\n\u2581" in files[-1].read_text(encoding="utf-8"):
        logging.getLogger(__name__).warning(
            "the words come in pieces of SentencePiece, which a bundle cannot make: it reads and writes these, separated by spaces"
        )
    names = {file: "codes" if file == codes else file.name for file in files}
    folder.mkdir(parents=True, exist_ok=True)
    for file, name in names.items():
        shutil.copyfile(file, folder / name)
    checkpoints.write(slim(state, half, languages), folder / WEIGHTS)
    description = {
        "source_lang": languages[0],
        "target_lang": languages[1],
        "tokenizer_langs": [tokenised_as(data, language) for language in languages],
        "moses": moses_options(data, files[: len(languages)]),
        "arch": arch,
        "updates": state["optimizer_history"][-1]["num_updates"],
        "parameters": count_parameters(averaged_weights(state["model"])),
        "versions": versions(),
        "sha256": {name: sha256(folder / name) for name in sorted([WEIGHTS, *names.values()])},
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return description


def moses_options(data: Path, dictionaries: Sequence[Path]) -> Dict[str, bool]:
    """What fairseq's Moses tokeniser is to leave to itself, since the text that was trained on, tokenised by others, does not
    have it: escapes (``&apos;``), and hyphens as words (``@-@``)."""
    if not prepared_with(data).get("tokenised"):
        return {}
    words = " ".join(file.read_text(encoding="utf-8") for file in dictionaries)
    return {
        "moses_no_escape": not re.search("&(apos|quot|amp);", words),
        "moses_no_dash_splits": "@-@" not in words,
    }


def languages_of(cfg, data: Path) -> List[str]:
    """Source and target language: as trained with, else of the data.

    Raises:
        FastDiSSError: neither says.
    """
    for given in ([part.get("source_lang"), part.get("target_lang")] for part in (cfg["task"], cfg["model"])):
        if all(given):
            return given
    inferred = data_utils.infer_language_pair(str(data))
    if not all(inferred):
        raise FastDiSSError(f"cannot infer the languages from {data}: give the data folder trained on")
    return list(inferred)


def check_dictionaries(weights: dict, files: Sequence[Path]) -> None:
    """Raise FastDiSSError unless these are the dictionaries trained with; older checkpoints do not say."""
    for file in files:
        if not file.is_file():
            raise FastDiSSError(f"no dictionary {file}")
    own = [fingerprint(Dictionary.load(str(file))) for file in files]
    trained = weights.get("dictionary_versions", weights.get("dictionaries"))  # its former name
    if trained is not None and trained.tolist() != own:
        raise FastDiSSError(f"the dictionaries of {files[0].parent} are not those that the checkpoint was trained with")


def export_file(checkpoint: Path, data: Path, file: Path, *how) -> dict:
    """:func:`export` into one zip archive, which appears when it is whole."""
    with tempfile.TemporaryDirectory() as folder:
        description = export(checkpoint, data, Path(folder), *how)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in sorted(Path(folder).iterdir()):
                archive.write(member, member.name)
        part.replace(file)
    return description


def main(arguments=None):
    args = get_parser().parse_args(arguments)
    if args.verify:
        with opened(args.verify) as folder:
            verify(folder)
        print(f"{args.verify}: all checksums agree")
        return
    if not (args.checkpoint and args.data and args.output):
        raise FastDiSSError("fastdiss-export takes CHECKPOINT --data FOLDER --output BUNDLE, or --verify BUNDLE")
    making = export_file if args.output.suffix == ".zip" else export
    description = making(args.checkpoint, args.data, args.output, not args.float32, args.codes)
    print(json.dumps(description, indent=1))


def cli_main():
    run_as_command(main)
