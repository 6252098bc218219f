"""Checkpoints and bundles from elsewhere: nothing in them runs, and nothing in them goes unchecked."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from fastdiss_fairseq import FastDiSS
from fastdiss_fairseq.bundle import DESCRIPTION, WEIGHTS, opened, sha256, verify
from fastdiss_fairseq.errors import FastDiSSError

BUNDLE = Path(__file__).parents[1] / "models" / "multi30k_de_en"


class Call:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


#: Functions that a careless reader would run, by the name that a refusal tells.
CALLS = {
    "posix.system": lambda trace: Call(os.system, f"touch {trace}"),
    "builtins.exec": lambda trace: Call(exec, f"open({str(trace)!r}, 'w')"),
    "io.open": lambda trace: Call(open, str(trace), "w"),
    "os.mkdir": lambda trace: Call(os.mkdir, str(trace)),
}


@pytest.mark.parametrize("form", ["torch", "plain pickle"])
@pytest.mark.parametrize("name", list(CALLS))
def test_a_malicious_checkpoint_is_refused_and_nothing_runs(name, form, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "model.pt"
    state = {"model": {"weight": torch.ones(2)}, "cfg": CALLS[name](trace)}
    if form == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    with pytest.raises(FastDiSSError) as refused:
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert form != "torch" or "could run any command" in str(refused.value)
    assert not trace.exists() and "\n" not in str(refused.value)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(BUNDLE, tmp_path / "bundle")


def test_a_malicious_bundle_with_checksums_that_agree_is_refused(copy, tmp_path):
    torch.save({"cfg": CALLS["posix.system"](tmp_path / "trace")}, copy / WEIGHTS)
    description = json.loads((copy / DESCRIPTION).read_text())
    description["sha256"][WEIGHTS] = sha256(copy / WEIGHTS)
    (copy / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(FastDiSSError, match="could run any command"):
        FastDiSS.from_pretrained(copy)
    assert not (tmp_path / "trace").exists()


def unlist(folder, name):
    description = json.loads((folder / DESCRIPTION).read_text())
    del description["sha256"][name]
    (folder / DESCRIPTION).write_text(json.dumps(description))


CHANGES = {
    "other weights": (lambda folder: (folder / WEIGHTS).write_bytes(b"x"), "checksum differs"),
    "another word": (lambda folder: (folder / "dict.en.txt").write_text("word 1\n"), "checksum differs"),
    "a file missing": (lambda folder: (folder / "dict.de.txt").unlink(), "lacks dict.de.txt"),
    "weights not listed": (lambda folder: unlist(folder, WEIGHTS), f"no checksum of {WEIGHTS}"),
    "codes not listed": (lambda folder: unlist(folder, "codes"), "no checksum of codes"),
    "no description": (lambda folder: (folder / DESCRIPTION).unlink(), "no bundle"),
    "a description cut short": (lambda folder: (folder / DESCRIPTION).write_text('{"sha'), "no bundle"),
    "a list": (lambda folder: (folder / DESCRIPTION).write_text("[]"), "no bundle"),
    "no languages": (lambda folder: (folder / DESCRIPTION).write_text('{"sha256": {}}'), "no bundle"),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_changed_bundle_is_refused(name, copy):
    change, message = CHANGES[name]
    verify(copy)
    change(copy)
    with pytest.raises(FastDiSSError, match=message):
        FastDiSS.from_pretrained(copy)


def test_the_allow_list_holds_no_function_but_those_that_make_arrays():
    """torch calls what is allowed with whatever arguments the file says."""
    functions = {item if not isinstance(item, tuple) else item[0] for item in torch.serialization.get_safe_globals()}
    ours = {item for item in functions if not isinstance(item, type) and not item.__module__.startswith("torch")}
    assert {item.__name__ for item in ours} <= {"_reconstruct", "scalar", "Any"}


def test_fairseqs_own_loading_refuses_a_changed_bundle(copy):
    (copy / "dict.en.txt").write_text("a 1\n" + (copy / "dict.en.txt").read_text())
    with pytest.raises(FastDiSSError, match="dict.en.txt is not the file that was exported"):
        checkpoint_utils.load_checkpoint_to_cpu(str(copy / WEIGHTS))
    (copy / DESCRIPTION).unlink()  # a folder of somebody's own, then
    assert "model" in checkpoint_utils.load_checkpoint_to_cpu(str(copy / WEIGHTS))


def zipped(folder, file):
    return Path(shutil.make_archive(str(file), "zip", folder))


def test_a_bundle_in_one_file_decodes_like_the_folder(copy, tmp_path):
    file = zipped(copy, tmp_path / "model")
    shutil.rmtree(copy)
    sentence = ["Ein Mann schläft auf einer Bank."]
    assert FastDiSS.from_pretrained(file).translate(sentence) == FastDiSS.from_pretrained(BUNDLE).translate(sentence)


def test_a_changed_or_damaged_file_is_refused(copy, tmp_path):
    (copy / "codes").write_text((copy / "codes").read_text() + "x y\n")
    with pytest.raises(FastDiSSError, match="codes is not the file that was exported"):
        FastDiSS.from_pretrained(zipped(copy, tmp_path / "changed"))
    whole = zipped(BUNDLE, tmp_path / "whole").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.zip").write_text("no archive")
    for name in ("cut.zip", "text.zip"):
        with pytest.raises(FastDiSSError, match=f"{name} is no bundle"):
            FastDiSS.from_pretrained(tmp_path / name)


def test_no_damage_to_an_archive_is_a_traceback(tmp_path):
    (tmp_path / "text").write_text(" ".join(map(str, range(300))))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "text", "text")
    whole = (tmp_path / "a.zip").read_bytes()
    for place in range(40, 400, 7):
        (tmp_path / "a.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(FastDiSSError, match="a.zip is no bundle: "):
            with opened(tmp_path / "a.zip"):
                pass


@pytest.mark.parametrize("name", ["../outside", "/outside", "below/model.pt"])
def test_a_file_that_leads_elsewhere_is_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr(name, "text")
    with pytest.raises(FastDiSSError, match="is no bundle: it holds"):
        FastDiSS.from_pretrained(tmp_path / "model.zip")
    assert not (tmp_path / "outside").exists()
