"""The console commands fastdiss-score, fastdiss-sweep, fastdiss-ablate and fastdiss-export, and the plots of training."""

import itertools
import json
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import forked
import pytest
import torch
from conftest import ENVIRONMENT, MODEL, PLUGIN, ROOT, TRAINING, fastdiss, generate, lines

from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from fastdiss_fairseq import loading
from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.tools import (
    ablate,
    benchmark,
    contrasts,
    decoding_speed,
    export,
    report,
    rows,
    scoring,
    speed_report,
    sweep,
)
from fastdiss_fairseq.bundle import sha256
from fastdiss_fairseq.tools.command import run_as_command
from fastdiss_fairseq.tools.records import Records, circumstances, count_parameters


def tool(name, *arguments, check=True):
    """Run a console command as a user would."""
    done = forked.run(f"fastdiss_fairseq.tools.{name}", arguments, ENVIRONMENT, ROOT)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def assert_one_line_error(done, *parts):
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("fastdiss: error: ")
    for part in parts:
        assert part in last


# Scoring


def generated(path, sentences):
    """Write a file like the output of fairseq-generate, in an order of its own."""
    text = []
    for number, line in reversed(list(enumerate(sentences))):
        text += [f"S-{number}\tx", f"T-{number}\tx", f"H-{number}\t-0.1\t{line}"]
        text += [f"D-{number}\t-0.1\t{line}", f"P-{number}\t-0.1"]
    text.append("Translated 2 sentences (9 tokens) in 0.5s (4.00 sentences/s, 18.00 tokens/s)")
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def test_pieces_of_words_are_noticed(capsys):
    for text, noticed in (("a por@@ ch", True), ("a por@@", True), ("mail a@@b or @@ ,", False)):
        scoring.warn_of_pieces("gen.txt", [text])
        assert ("--post-process" in capsys.readouterr().err) == noticed


def test_scoring(tmp_path):
    sentences = [f"A man number {number} walks down the street ." for number in range(12)]
    output = generated(tmp_path / "gen.txt", sentences)
    assert scoring.read_hypotheses(output) == sentences
    (tmp_path / "ref").write_text("\n".join(sentences).replace(" .", ".") + "\n")
    scores = json.loads(tool("scoring", output, tmp_path / "ref", "--detokenize", "en").stdout)
    assert (scores["sentences"], scores["BLEU"]["value"], scores["chrF"]["value"]) == (12, 100.0, 100.0)
    assert "tok:13a" in scores["BLEU"]["signature"] and "nc:6" in scores["chrF"]["signature"]


def test_scoring_of_tokenised_text_against_raw_text_is_warned_of(tmp_path, capsys):
    tokenised, raw = ["The man 's dog .", "A cat", "Who is it ?"], ["The man's dog.", "A cat", "Who is it?"]
    (tmp_path / "tokenised").write_text("\n".join(tokenised) + "\n")
    (tmp_path / "raw").write_text("\n".join(raw) + "\n")

    def warned(hypotheses, reference, *options):
        scoring.main([str(generated(tmp_path / "gen.txt", hypotheses)), str(tmp_path / reference), *options])
        return "looks tokenised and" in capsys.readouterr().err

    assert warned(tokenised, "raw")
    assert not warned(tokenised, "raw", "--detokenize", "en")
    assert not warned(raw, "raw") and not warned(tokenised, "tokenised")


@pytest.mark.parametrize(
    "text, reference, message",
    [
        ("D-0\t-1\ta\n", "a\nb\n", "1 hypotheses but 2 references"),
        ("nothing", "a\n", "no D- lines"),
        ("D-0\t-1\ta\nD-0\t-2\tb\n", "a\n", "sentence 0 occurs twice"),
        (None, "a\n", "cannot read"),
    ],
)
def test_scoring_errors(tmp_path, text, reference, message):
    if text is not None:
        (tmp_path / "gen").write_text(text)
    (tmp_path / "ref").write_text(reference)
    assert_one_line_error(tool("scoring", tmp_path / "gen", tmp_path / "ref", check=False), message)


def test_an_empty_hypothesis_counts_as_a_line(tmp_path):
    output = generated(tmp_path / "gen.txt", ["a", "", "c"])
    assert scoring.read_hypotheses(output) == ["a", "", "c"]


def test_rouge(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(FastDiSSError, match="rouge-score"):
        scoring.score(["a b"], [["a b"]], ["ROUGE-1"])
    monkeypatch.undo()
    pytest.importorskip("rouge_score")
    scores = scoring.score(["the cat sat", "a b"], [["the cat sat", "c d"]], ["ROUGE-1", "ROUGE-2", "ROUGE-L"])
    assert [found.value for found in scores.values()] == [50.0, 50.0, 50.0]


def test_unknown_metrics_are_named():
    with pytest.raises(FastDiSSError, match="unknown metric 'METEOR'.*chrF"):
        scoring.score(["a"], [["a"]], ["METEOR"])


# Records


def test_records_are_found_again(tmp_path):
    path = tmp_path / "results.json"
    records = Records(path, ["system", "steps"], "value")
    for steps, value in ((1, 3.0), (2, 4.0), (1, 5.0)):
        records.add({"system": "a", "steps": steps, "value": value})
    again = Records(path, ["system", "steps"], "value")
    assert [(r["steps"], r["value"]) for r in again] == [(1, 5.0), (2, 4.0)]
    assert again.get({"system": "a", "steps": 2, "value": 9})["value"] == 4.0
    assert again.get({"system": "b", "steps": 2}) is None
    again.add({"system": "b", "steps": 1, "value": 1.0})
    records.add({"system": "c", "steps": 1, "value": 2.0})  # which was read before
    assert [r["system"] for r in Records(path, ["system", "steps"], "value")] == ["a", "a", "b", "c"]
    with pytest.raises(FastDiSSError, match="the results of another command: take another folder"):
        Records(path, ["system"], "scores")
    path.write_text("[{")
    with pytest.raises(FastDiSSError, match="no results file"):
        Records(path, ["system"], "value")


# Sweep


@pytest.fixture(scope="module")
def swept(data, text, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    arguments = [
        data, "--path", checkpoint, checkpoint, "--systems", "a", "b", "--reference", text / "test.tgt", "--cpu",
        "--steps", 1, 3, "--self-conditioning", "previous", "recompute", "--output", folder, "--metrics", "chrF", "BLEU",
        "--baseline", "a", "--batch-size", 4, "--samples", 2,
    ]  # fmt: skip
    return folder, arguments, tool("sweep", *arguments)


def test_sweep_agrees_with_generate(swept, data, text, checkpoint):
    folder, _, _ = swept
    records = Records(folder / "results.json", sweep.KEY_FIELDS, "scores")
    record = next(r for r in records if (r["system"], r["steps"], r["self_conditioning"]) == ("a", 3, "previous"))
    hypotheses = (folder / "hypotheses").glob("*-test-a-7-3-previous-*")
    output = generate(data, checkpoint, "--decoding-steps", 3, "--seed", 1).stdout
    expected = [found[0].split("\t")[1] for _, found in sorted(lines(output, "H").items(), key=lambda x: int(x[0]))]
    assert next(hypotheses).read_text().splitlines() == scoring.detokenise(expected, "tgt")
    assert record["value"] == scoring.score(expected, [scoring.read_lines(text / "test.tgt")], ["chrF"])["chrF"].value


def test_records_of_a_sweep_say_all(swept, checkpoint):
    folder, _, _ = swept
    records = json.loads((folder / "results.json").read_text())
    assert len(records) == 8
    for record in records:
        each = 2 if record["self_conditioning"] == "recompute" else 1
        assert record["evaluations"] == each * record["steps"]
        assert record["checkpoint_sha256"] == sha256(checkpoint) and record["updates"] == 12
        assert (record["seed"], record["candidates"], record["split"], record["metric"]) == (7, 1, "test", "chrF")
        assert (record["noise_factor"], record["told_noise_factor"]) == (4.0, 8.0)
        assert record["seconds"] > 0 and record["sentences_per_second"] > 0 and record["peak_memory_mb"] > 1
        assert {"benchmark", "signature", "device", "versions", "command"} <= set(record)
        assert set(record["scores"]) == {"chrF", "BLEU"} and str(ROOT.parent) not in record["command"]


def test_commands_are_recorded_without_the_folders_above(tmp_path, monkeypatch):
    """Paths as they were given, through links too, so that the command runs again; of what lies elsewhere the name."""
    (tmp_path / "far").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "runs").symlink_to(tmp_path / "far")
    monkeypatch.chdir(tmp_path / "here")
    given = ["runs/a/x.pt", "--path", f"{tmp_path}/here/runs/b.pt", "--outputs", "ar:1=../far/out put.txt", "a=runs/c"]
    monkeypatch.setattr(sys, "argv", ["x", *given])
    command = circumstances("fastdiss-sweep", torch.device("cpu"))["command"]
    assert command == "fastdiss-sweep runs/a/x.pt --path runs/b.pt --outputs 'ar:1=out put.txt' a=runs/c"
    given = ["data", "--sweep", f" --reference '{tmp_path}/here/a b.en' --steps 1 --path {tmp_path}/far/x.pt"]
    monkeypatch.setattr(sys, "argv", ["/bin/fastdiss-ablate", *given])
    words = shlex.split(circumstances("fastdiss-sweep", torch.device("cpu"))["command"])
    assert words == ["fastdiss-ablate", "data", "--sweep", " --reference 'a b.en' --steps 1 --path x.pt"]


def test_tables_and_plots_of_a_sweep(swept):
    folder, _, done = swept
    table = (folder / "table.md").read_text()
    assert "| system | self conditioning | K = 1 | K = 3 |" in table and "| b, recompute | a | 3 |" in table
    assert "| a, recompute | previous | 3 |" in table
    assert done.stdout.count("reference: ") == 2
    pytest.importorskip("matplotlib")
    names = ("quality_by_steps", "quality_by_latency", "recompute_gap")
    for name in [f"{name}.{kind}" for name in names for kind in ("png", "svg")]:
        assert (folder / name).stat().st_size > 1000


def test_a_sweep_of_a_changed_model(data, text, checkpoint, tmp_path):
    options = ["--reference", text / "test.tgt", "--steps", 1, 2, "--cpu", "--deployment", "bf16", "--output", tmp_path]
    tool("sweep", data, "--path", checkpoint, "--systems", "a", *options)
    records = json.loads((tmp_path / "results.json").read_text())
    assert [(r["system"], r["deployment"], r["steps"]) for r in records] == [
        ("a, bf16", "bf16", 1),
        ("a, bf16", "bf16", 2),
    ]


def test_a_sweep_with_early_exit_stands_beside_that_without(data, text, checkpoint, tmp_path):
    always = ["--reference", text / "test.tgt", "--steps", 60, "--cpu", "--output", tmp_path]
    for options in ([], ["--early-exit"]):
        tool("sweep", data, "--path", checkpoint, "--systems", "a", *always, *options)
    whole, early = json.loads((tmp_path / "results.json").read_text())
    assert (whole["system"], whole["early_exit"], whole["evaluations"]) == ("a", False, 60)
    assert (early["system"], early["early_exit"], early["steps"]) == ("a, early exit", True, 60)
    assert 1 < early["evaluations"] < 60


def test_a_sweep_goes_on_where_it_stopped(swept):
    """Of the cells on file none is decoded again; the one that is missing is, and one of another checkpoint."""
    folder, arguments, _ = swept
    path = folder / "results.json"
    before = json.loads(path.read_text())
    marked = [{**record, "value": -1.0} for record in before[:-1]]
    path.write_text(json.dumps([{**marked[0], "checkpoint_sha256": "other"}, *marked[1:]]))
    tool("sweep", *arguments)
    after = json.loads(path.read_text())
    assert [record["value"] for record in after] == [before[0]["value"], *[-1.0] * 6, before[-1]["value"]]


def test_other_metrics_are_added_to_what_was_decoded(data, text, checkpoint, tmp_path):
    path, output = tmp_path / "out" / "results.json", generated(tmp_path / "gen.txt", ["a"] * 10)
    line = [data, "--path", checkpoint, "--outputs", f"other={output}", "--reference", text / "test.tgt", "--cpu"]
    line += ["--steps", 1, "--output", tmp_path / "out", "--metrics"]
    tool("sweep", *line, "chrF")
    path.write_text(json.dumps([{**record, "seconds": -1.0} for record in json.loads(path.read_text())]))
    tool("sweep", *line, "BLEU")
    ours, other = json.loads(path.read_text())
    assert ours["seconds"] == -1.0 and ours["metric"] == "BLEU" and ours["value"] == ours["scores"]["BLEU"]["value"]
    assert set(ours["scores"]) == set(other["scores"]) == {"BLEU", "chrF"}
    generated(output, ["b"] * 10)
    tool("sweep", *line, "BLEU")
    assert set(json.loads(path.read_text())[1]["scores"]) == {"BLEU"}  # of another text


def test_text_is_detokenised_as_what_the_data_says(tmp_path):
    assert loading.tokenised_as(tmp_path, "syn") == "syn"
    settings = {"source_lang": "desc", "target_lang": "syn", "tokenizer_langs": ["de", "en"]}
    (tmp_path / "stats.json").write_text(json.dumps({"settings": settings}))
    assert [loading.tokenised_as(tmp_path, name) for name in ("desc", "syn", "fr", None)] == ["de", "en", "fr", None]


def test_samples_are_of_the_fewest_steps_and_of_about_five(capsys):
    common = {"self_conditioning": "previous", "repeats": "merge"}
    records = [{**common, "system": "a", "seed": seed, "steps": k} for seed in (1, 2) for k in (20, 4, 2)]
    records.append({"system": "ar", "seed": None, "steps": None})
    report.print_samples(records, lambda record: [f"{record['steps']}"], ["reference"], 3)
    assert capsys.readouterr().out.split("\n") == [
        "", " 1. reference: reference", "    a, seed 1, K = 2: 2", "    a, seed 1, K = 4: 4", "    ar: None", "",
    ]  # fmt: skip


def test_outputs_of_other_models_stand_in_the_same_table(tmp_path, data, text, transformer):
    output = generated(tmp_path / "gen.txt", scoring.read_lines(text / "test.tgt"))
    (tmp_path / "log.txt").write_text(f"{{'path': '{transformer}', 'seed': 1}}\n{output.read_text()}")
    options = ["--reference", text / "test.tgt", "--output", tmp_path / "out"]
    tool("sweep", data, "--outputs", f"ar={tmp_path / 'log.txt'}", f"cmlm:10={output}", *options)
    ar, cmlm = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (ar["system"], ar["steps"], cmlm["system"], cmlm["steps"]) == ("ar", None, "cmlm", 10)
    assert (ar["updates"], ar["seed"], ar["checkpoint_sha256"]) == (4, 7, sha256(transformer))
    assert (cmlm["updates"], cmlm["seed"]) == (None, None)
    assert ar["value"] == 100.0 and (ar["seconds"], ar["sentences_per_second"]) == (0.5, 4.0)
    assert "| cmlm | 100.00 |  |" in (tmp_path / "out" / "table.md").read_text()


def test_outputs_that_look_tokenised_are_detokenised(tmp_path, data):
    raw = ["The man's dog.", "A cat, a dog."]
    (tmp_path / "raw").write_text("\n".join(raw) + "\n")
    tokens = generated(tmp_path / "tokens.txt", ["The man 's dog .", "A cat , a dog ."])
    (tmp_path / "de-en").mkdir()
    for name in ("test.de-en.en.idx", "dict.en.txt"):
        (tmp_path / "de-en" / name).write_text("")
    line = ["sweep", tmp_path / "de-en", "--reference", tmp_path / "raw", "--output", tmp_path / "out", "--outputs"]
    tool(*line, f"a={tokens}", f"b={generated(tmp_path / 'text.txt', raw)}")
    tool(*line, f"c={tokens}", "--detokenize", "none")
    a, b, c = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (a["value"], a["detokenize"], b["value"], b["detokenize"]) == (100.0, "en", 100.0, None)
    assert c["value"] < 70 and c["detokenize"] == "none"
    missing = ["sweep", tmp_path / "typo", *line[2:], f"a={tokens}"]
    assert_one_line_error(tool(*missing, check=False), "no data folder")


def test_systems_are_tested_against_outputs_of_other_models():
    def record(system, steps, solver=None, repeats="keep", **other):
        settings = {"benchmark": "b", "split": "test", "reference_sha256": "r", "self_conditioning": "previous"}
        return {**settings, "system": system, "steps": steps, "solver": solver, "repeats": repeats, **other}

    ours = [record("ours", steps, "mask_predict", "merge") for steps in (1, 10)]
    ar = [record("ar", None, repeats=repeats) for repeats in ("keep", "merge")]
    cmlm, elsewhere = record("cmlm", 10), record("ar", None, split="valid", repeats="merge")
    found = contrasts.rivals([*ours, *ar, cmlm, elsewhere], "ar")
    assert found == [(ours[0], ar[1]), (ours[1], ar[1]), (cmlm, ar[0])]
    assert contrasts.rivals([*ours, cmlm], "cmlm") == [(ours[1], cmlm)]
    assert contrasts.rivals([*ours, cmlm], "ours") == [(ours[1], cmlm)]
    other = record("scp", 10, "ddim", "merge")
    assert contrasts.rivals([*ours, other], "ours") == []  # settings of ours tell them apart


def test_a_tensor_with_several_names_counts_once(tmp_path):
    table = torch.zeros(7, 3)
    torch.save({"encoder": table, "decoder": table, "other": torch.zeros(2)}, tmp_path / "shared.pt")
    assert count_parameters(torch.load(tmp_path / "shared.pt")) == 23


def test_repeats_of_other_models_are_merged_where_asked(tmp_path, data, text):
    references = scoring.read_lines(text / "test.tgt")
    output = generated(tmp_path / "gen.txt", [line.replace(" ", " and and , , ", 1) for line in references])
    options = ["--reference", text / "test.tgt", "--output", tmp_path / "out", "--output-repeats", "keep", "merge"]
    tool("sweep", data, "--outputs", f"cmlm:1={output}", *options)
    kept, merged = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (kept["repeats"], merged["repeats"]) == ("keep", "merge") and kept["value"] < merged["value"] < 100


def test_merging_repeats_of_a_line():
    assert scoring.merged(["a a b , , a 5 5", "", "A a"]) == ["a b , , a 5 5", "", "A a"]


@pytest.mark.parametrize(
    "criterion, name",
    [
        ({"_name": "fsdfm_loss"}, "fsdfm"),
        ({"no_scp": True, "no_mans": True}, "standard"),
        ({"no_mans": True}, "scp"),
        ({"no_scp": True}, "mans"),
        ({}, "scp+mans"),
    ],
)
def test_systems_are_named_by_what_they_were_trained_with(criterion, name):
    assert sweep.system_name(criterion, {"step_aware": False}) == name


def test_sweep_refuses_other_models_and_a_file_as_folder(data, text, transformer, checkpoint, tmp_path):
    always = [data, "--reference", text / "test.tgt", "--cpu", "--output"]
    assert_one_line_error(tool("sweep", *always, tmp_path, "--path", transformer, check=False), "not a FastDiSS model")
    assert_one_line_error(tool("sweep", *always, text / "test.src", "--path", checkpoint, check=False), "test.src")


def test_a_sweep_decodes_anew_what_has_changed(data, text, checkpoint, tmp_path):
    references = tmp_path / "references"

    def swept(*options, split="test", others=None):
        references.write_text("\n".join(others or scoring.read_lines(text / f"{split}.tgt")) + "\n")
        arguments = [data, "--path", checkpoint, "--reference", references, "--output", tmp_path / "out", "--cpu"]
        sweep.main([*map(str, arguments), "--steps", "1", "--subset", split, *options])
        return json.loads((tmp_path / "out/results.json").read_text())

    (first,) = swept("--metrics", "chrF")
    assert swept("--metrics", "chrF") == [first]
    (second,) = swept("--metrics", "chrF", "BLEU")
    assert set(second["scores"]) == {"chrF", "BLEU"} and second["value"] == first["value"]
    (third,) = swept("--metrics", "chrF", others=["x"] * 10)
    assert third["value"] != first["value"] and third["reference_sha256"] != first["reference_sha256"]
    found = swept("--metrics", "chrF", "--seed", "2")
    assert [record["decoding_seed"] for record in found] == [1, 2]
    assert len(swept("--metrics", "BLEU", split="valid")) == 3  # 13 sentences beside 10
    found = swept("--metrics", "chrF", "--systems", "b", "--baseline", "scp+mans", split="valid")
    assert len(found) == 4 and "| b, chrF" not in (tmp_path / "out/table.md").read_text()


def test_splits_in_one_folder_are_tested_against_their_own_references(data, text, checkpoint, tmp_path):
    def p_values(output, *splits):
        for split in splits:
            arguments = [
                data,
                "--path",
                checkpoint,
                checkpoint,
                "--reference",
                text / f"{split}.tgt",
                "--subset",
                split,
            ]
            options = [
                "--systems",
                "a",
                "b",
                "--baseline",
                "a",
                "--steps",
                "1",
                "--solver",
                "ddim",
                "--metrics",
                "chrF",
            ]
            sweep.main([*map(str, [*arguments, "--output", tmp_path / output, "--cpu"]), *options])
        table = (tmp_path / output / "table.md").read_text()
        return [line.split("|")[-2].strip() for line in table.splitlines() if "+0.00" in line]

    assert p_values("both", "valid", "test") == ["1.000"] * 2
    assert p_values("reverse", "test", "valid") == ["1.000"] * 2


def test_metrics_are_not_mixed(tmp_path):
    """A record of BLEU alone is neither subtracted from one of chrF nor drawn with it."""
    pytest.importorskip("matplotlib")
    always = dict.fromkeys(rows.ROW_FIELDS)
    always.update(steps=1, sentences_per_second=1.0, device="CPU", self_conditioning="previous")
    score = lambda metric, value: {metric: {"value": value, "signature": metric}}
    records = [
        {**always, "system": "a", "metric": "BLEU", "value": 20.0, "scores": score("BLEU", 20.0)},
        {**always, "system": "b", "metric": "chrF", "value": 40.0, "scores": score("chrF", 40.0)},
    ]
    hypotheses = lambda record: ["a man walks" if record["system"] == "b" else "a dog walks"]
    write = lambda: report.write(records, hypotheses, lambda record: ["a man walks"], tmp_path, "chrF", baseline="a")
    write()
    assert "Differences" not in (tmp_path / "table.md").read_text()
    records[0]["scores"].update(score("chrF", 30.0))
    write()
    assert "Differences in chrF" in (tmp_path / "table.md").read_text()
    better = 100 - scoring.score(hypotheses(records[0]), [["a man walks"]], ["chrF"])["chrF"].value
    assert f"+{better:.2f}" in (tmp_path / "table.md").read_text()


def test_checkpoints_of_one_name_are_refused(data, text, checkpoint, tmp_path):
    other = shutil.copyfile(checkpoint, tmp_path / "other.pt")
    arguments = [data, "--reference", text / "test.tgt", "--output", tmp_path / "out", "--path", checkpoint, other]
    with pytest.raises(FastDiSSError, match="are both scp.mans: name them by --systems"):
        sweep.main(list(map(str, arguments)))
    assert not (tmp_path / "out").exists()


def test_text_that_is_no_moses_tokens_is_left_alone(data, text, checkpoint, tmp_path):
    arguments = [data, "--path", checkpoint, "--reference", text / "test.tgt", "--output", tmp_path, "--steps", 1]
    sweep.main([*map(str, arguments), "--cpu", "--post-process", "sentencepiece", "--detokenize", "none"])
    (hypotheses,) = (tmp_path / "hypotheses").iterdir()
    assert not any(" " in line for line in hypotheses.read_text().splitlines())  # sentencepiece joins all


def test_a_sweep_with_a_reranker_agrees_with_generate(data, text, checkpoint, transformer, tmp_path, capsys):
    arguments = [str(data), "--path", str(checkpoint), "--reranker", str(transformer), "--cpu", "--metrics", "chrF"]
    arguments += ["--reference", str(text / "test.tgt"), "--output", str(tmp_path), "--steps", "2"]
    arguments += ["--length-beam", "3", "--choice", "score", "ar"]
    sweep.main(arguments)
    records = {record["choice"]: record for record in json.loads((tmp_path / "results.json").read_text())}
    assert records["ar"]["reranker_sha256"] == sha256(transformer) and not records["score"]["reranker_sha256"]
    options = ["--decoding-steps", 2, "--length-beam", 3, "--decoding-choice", "ar"]
    output = generate(data, f"{checkpoint}:{transformer}", *options).stdout
    found = sorted((int(number), rest[0].split("\t")[1]) for number, rest in lines(output, "H").items())
    (hypotheses,) = (tmp_path / "hypotheses").glob("*-ar-1.txt")
    assert hypotheses.read_text().splitlines() == scoring.detokenise([line for _, line in found], "tgt")
    before = (tmp_path / "results.json").read_text()
    sweep.main(arguments)
    assert (tmp_path / "results.json").read_text() == before  # nothing decoded, and timed, anew


def test_a_single_candidate_is_decoded_once():
    parse = sweep.get_parser().parse_args
    args = parse("d --reference r --output o --steps 5 --length-beam 1 3 --choice mbr score".split())
    found = [(cell["length_beam"], cell["choice"]) for cell in sweep.cells(args)]
    assert found == [(1, "score"), (3, "mbr"), (3, "score")]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--path", "none.pt"], "no checkpoint none.pt"),
        ([], "nothing to do"),
        (["--path", "a.pt", "--systems", "a", "b"], "2 names for 1 checkpoints"),
        (["--metrics", "METEOR"], "unknown metric"),
        (["--steps", "0"], "at least 1"),
        (["--length-beam", "0", "5"], "--length-beam must be a whole number of at least 1, not 0"),
        (["--noise-beam", "0"], "--noise-beam must be a whole number of at least 1, not 0"),
        (["--subset", "dev"], "has no split dev"),
        (["--deployment", "int8", "bf16"], "--decoding-int8 excludes --decoding-bf16"),
        (["--choice", "ar"], "--reranker"),
        (["--post-process", "bytes"], "no --post-process bytes"),
        (["--outputs", "=x"], "SYSTEM[:STEPS]=FILE"),
        (["--outputs", "cmlm:many=x"], "SYSTEM[:STEPS]=FILE"),
        (["--outputs", "cmlm=missing"], "cannot read missing"),
        (["--path", "none.pt", "--outputs", "cmlm=missing"], "cannot read missing"),  # before anything is decoded
        (["--reference", "missing"], "cannot read missing"),
        (
            ["--path", "none.pt", "--choice", "mbr"],
            "--choice mbr needs several candidates: --length-beam, --noise-beam",
        ),
        (["--outputs", "a=x", "a=y"], "two of --outputs have the same name and steps"),
        (["--outputs", "a={generated}", "--baseline", "b"], "there is no --baseline b (of a)"),
    ],
)
def test_sweep_errors(options, message, tmp_path, data, text):
    output = generated(tmp_path / "gen.txt", scoring.read_lines(text / "test.tgt"))
    options = [option.replace("{generated}", str(output)) for option in options]
    always = [data, "--reference", text / "test.tgt", "--output", tmp_path]
    assert_one_line_error(tool("sweep", *always, *options, check=False), message)


# Ablation


@pytest.fixture(scope="module")
def ablated(data, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    options = [o for o in TRAINING if o not in ("--log-format", "simple", "--no-epoch-checkpoints", "--seed", "7")]
    options += ["--max-update", "4", "--mans-start", "0", "--log-noise-levels", "--log-interval", "2"]
    arguments = [
        data, "--output", folder, "--jobs", 2, "--train", " ".join([*MODEL, *options]),
        "--sweep", f"--reference {text / 'test.tgt'} --steps 1 2 --baseline standard --cpu",
    ]  # fmt: skip
    tool("ablate", *arguments)
    return folder, arguments


def test_ablation_trains_four_systems_that_differ_in_scp_and_mans_alone(ablated):
    folder, _ = ablated
    configurations = {}
    for system in ablate.SYSTEMS:
        state = torch.load(folder / system / "checkpoint_last.pt")
        assert state["optimizer_history"][-1]["num_updates"] == 4
        cfg = state["cfg"]
        parts = [name for name in ("scp", "mans") if not cfg["criterion"]["no_" + name]]
        assert ("+".join(parts) or "standard") == system
        cfg["criterion"].update(no_scp=None, no_mans=None)
        cfg["checkpoint"]["save_dir"] = None
        configurations[system] = {
            name: cfg[name] for name in ("criterion", "model", "optimization", "dataset", "common")
        }
    assert all(found == configurations["standard"] for found in configurations.values())
    records = json.loads((folder / "sweep" / "results.json").read_text())
    assert {(r["system"], r["steps"]) for r in records} == {(s, k) for s in ablate.SYSTEMS for k in (1, 2)}


def test_variants_are_trained_like_systems():
    line = ["d", "--output", "o", "--train", "--mans-start 0.1", "--systems", "mans", "--seeds", "1", "2"]
    args = ablate.get_parser().parse_args([*line, "--variant", "late=--mans-start 0.5 --no-scp"])
    found = [(run.folder.name, run.system, run.seed, list(run.options)) for run in ablate.trainings(args)]
    late = ["--mans-start", "0.5", "--no-scp"]
    assert found == [
        ("mans", "mans", 1, ["--no-scp"]), ("late", "late", 1, late),
        ("mans-seed2", "mans", 2, ["--no-scp"]), ("late-seed2", "late", 2, late),
    ]  # fmt: skip
    command = ablate.command(args, ablate.trainings(args)[1])
    assert command[-5:] == ["--mans-start", "0.1", *late]  # of two the last counts


def test_a_training_of_another_seed_or_other_options_is_not_taken_for_this_one(data, tmp_path, monkeypatch):

    def trained(*options, train="--arch fastdiss_tiny --lr 1"):
        line = [str(data), "--output", str(tmp_path), "--systems", "scp", "--train", train, *options]
        ablate.main(line)

    monkeypatch.setattr(ablate.subprocess, "run", lambda *line, **_: subprocess.CompletedProcess(line, 1))
    with pytest.raises(FastDiSSError, match="training of scp failed"):
        trained()
    monkeypatch.setattr(ablate.subprocess, "run", lambda *line, **_: subprocess.CompletedProcess(line, 0))
    with pytest.raises(FastDiSSError, match="training of scp left no checkpoint_last.pt"):
        trained(train="--arch fastdiss_tiny --lr 1 --no-save")

    def saves(line, **_):
        Path(line[line.index("--save-dir") + 1], "checkpoint_last.pt").touch()
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(ablate.subprocess, "run", saves)
    trained()
    trained()
    trained("--seeds", "2")
    assert (tmp_path / "scp-seed2/finished").exists()
    with pytest.raises(FastDiSSError, match="scp holds other work: options differ"):
        trained(train="--arch fastdiss_tiny --lr 2")


@pytest.mark.parametrize(
    "visible, count, expected",
    [
        ("2,3", 2, ["2", "3", "2"]),
        (None, 2, ["0", "1", "0"]),
        ("GPU-a, GPU-b", 2, ["GPU-a", "GPU-b", "GPU-a"]),
        ("5", 1, ["5"] * 3),
    ],
)
def test_each_training_at_a_time_has_one_of_the_gpus_that_are_seen(visible, count, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in ablate.environments(3).queue] == expected


def test_a_gpu_that_is_free_again_is_the_next(monkeypatch):
    where, begun = {}, threading.Event()

    def train(args, run, environment):
        where[run] = environment
        if run == 0:  # goes on until the others have ended
            begun.wait(10)
        if run == 3:
            begun.set()
        return Namespace(folder=Path("x"))

    monkeypatch.setattr(ablate, "train", train)
    monkeypatch.setattr(ablate, "environments", lambda jobs: queue_of("a", "b"))
    ablate.train_all(Namespace(jobs=2), [0, 1, 2, 3])
    assert where[1] == where[2] == where[3] != where[0]


def queue_of(*items):
    found = queue.Queue()
    for item in items:
        found.put(item)
    return found


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, FastDiSSError])
def test_an_ablation_that_is_interrupted_begins_no_more_trainings(error, monkeypatch):
    begun = []

    def train(args, run, environment):
        begun.append(run)
        if run == 0:
            raise error
        time.sleep(0.5)

    monkeypatch.setattr(ablate, "train", train)
    with pytest.raises(error):
        ablate.train_all(Namespace(jobs=1), [0, 1, 2, 3])
    assert len(begun) <= 2


def test_a_finished_ablation_trains_nothing_again(ablated):
    folder, arguments = ablated
    checkpoints = sorted(folder.glob("*/checkpoint_last.pt"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    tool("ablate", *arguments)
    assert len(before) == 4 and [path.stat().st_mtime_ns for path in checkpoints] == before


@pytest.mark.parametrize(
    "options, message",
    [
        (["--train", "--seed 3"], "must leave --seed to this command"),
        (
            ["--train", "--arch fastdiss_tiny --no-such-flag"],
            "--train for standard: unrecognized arguments: --no-such-flag",
        ),
        (
            ["--train", "--arch fastdiss_tiny", "--variant", "late=--scp-budgets 10 20"],
            "for late: unrecognized arguments: 20",
        ),
        (["--train=--help"], "--train for standard: "),
        (["--train", "--lr 1"], "--arch must be given, such as --arch fastdiss_tiny"),
        (["--train", "--arch fastdiss_tiny --max-tokens 0"], "training of standard failed"),
        (["--train", "--arch fastdiss_tiny", "--jobs", 0], "--jobs must be at least 1"),
        (["--train", "--arch fastdiss_tiny", "--sweep", "--reference none"], "cannot read none"),  # before training
        (
            ["--train", "--arch fastdiss_tiny", "--sweep", "--reference /dev/null --baseline b"],
            "there is no --baseline b (of standard, scp, mans, scp+mans)",
        ),
        (["--train", "--arch fastdiss_tiny", "--variant", "mans=--mans-start 0"], "NAME=OPTIONS with a new name"),
        (["--train", "--arch fastdiss_tiny", "--variant", "--mans-start 0"], "NAME=OPTIONS with a new name"),
        (["--train", "x", "--variant", "a=--lr 1", "--variant", "a=--lr 2"], "NAME=OPTIONS with a new name"),
        (["--train", "x", "--variant", "a=--save-dir y"], "--variant must leave --save-dir to this command"),
        (["--train", "--adam-betas '(0.9"], "--train --adam-betas '(0.9: No closing quotation"),
        (["--train", "x", "--systems", "scp", "scp"], "each once"),
        (["--train", "x", "--seeds", "2", "2"], "each once"),
    ],
)
def test_ablation_errors(options, message, tmp_path, data):
    assert_one_line_error(tool("ablate", data, "--output", tmp_path, *options, check=False), message)


def test_an_ablation_needs_data(tmp_path):
    assert_one_line_error(
        tool("ablate", tmp_path / "none", "--output", tmp_path, "--train", "x", check=False), "no data folder"
    )


@pytest.mark.parametrize("goes_on", [False, True])
def test_commands_end_quietly(goes_on, monkeypatch, tmp_path):
    """Interrupted, and where whoever read their output has read enough."""

    def stopped(error):
        raise error

    with pytest.raises(SystemExit) as ended:
        run_as_command(lambda: stopped(KeyboardInterrupt()), goes_on)
    assert ended.value.code == "interrupted" + "; the same command goes on from here" * goes_on
    with open(tmp_path / "out", "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(SystemExit) as ended:
            run_as_command(lambda: stopped(BrokenPipeError()), goes_on)
    assert ended.value.code == 1


# What training logs, and by noise level


def test_training_is_logged_and_plotted(ablated, tmp_path):
    pytest.importorskip("matplotlib")
    folder, _ = ablated
    logs = [folder / system / "train.log" for system in ("standard", "mans")]
    line = [sys.executable, ROOT / "scripts/plot_training.py", *logs, "--output", tmp_path]
    subprocess.run(list(map(str, line)), check=True, env=ENVIRONMENT)
    subprocess.run([*map(str, line), "--split", "valid"], check=True, env=ENVIRONMENT)
    subprocess.run(list(map(str, line)), check=True, env=ENVIRONMENT)
    found = json.loads((tmp_path / "noise_levels.json").read_text())
    for moments in found.values():
        assert [moment["updates"] for moment in moments] == [2, 4]
        for moment in moments:
            assert sum(moment["share"]) == pytest.approx(100, abs=0.1) and len(moment["share"]) == 10
    assert not any(sum(moment["moved"]) for moment in found["standard"])
    assert (tmp_path / "noise_levels_mans.png").stat().st_size > 1000
    curves = json.loads((tmp_path / "training.json").read_text())
    assert {"loss", "rounding_loss", "diffusion_loss", "length_loss", "lr"} <= set(curves)
    for quantity, of_runs in curves.items():
        assert list(of_runs) == ["standard", "mans"]
        for splits in of_runs.values():
            assert [update for update, _ in splits["train"]] == [2, 4] and ("valid" in splits) == (quantity != "lr")
    assert (tmp_path / "training.png").stat().st_size > 1000


def test_what_a_reused_estimate_costs(data, checkpoint, tmp_path):
    line = [sys.executable, ROOT / "scripts/self_conditioning_gap.py", data, "--path", checkpoint, "--cpu", "--steps"]
    found = {}
    for steps in (2, 3):
        file = tmp_path / f"{steps}.json"
        subprocess.run([*map(str, line), str(steps), "--output", str(file)], check=True, env=ENVIRONMENT)
        found[steps] = {record["self_conditioning"]: record for record in json.loads(file.read_text())}
        assert list(found[steps]) == ["none", "fresh", "rehearsed", "reused"]
        assert found[steps]["fresh"]["accuracy_of_estimate"] == found[steps]["none"]["accuracy"]
        losses = {record["cross_entropy"] for record in found[steps].values()}
        assert len(losses) == steps + 1  # of two steps the first has nothing to reuse: the rehearsal is the real thing
    reused = found[2]["reused"]
    assert {**reused, "self_conditioning": "rehearsed"} == found[2]["rehearsed"]
    assert found[3]["reused"]["tokens"] == 2 * reused["tokens"] > 0
    too_few = subprocess.run([*map(str, line), "1", "--output", "x"], capture_output=True, text=True, env=ENVIRONMENT)
    assert too_few.returncode == 1 and too_few.stderr.strip().endswith("in fewer than 2 steps")


def test_a_log_of_a_stock_model_is_plotted_without_noise_levels(tmp_path):
    pytest.importorskip("matplotlib")
    log = tmp_path / "cmlm.log"
    log.write_text(
        "2026 | INFO | train_inner | epoch 001:     50 / 130 loss=12.3, ppl=47.9, num_updates=50, lr=0.00025, wall=46\n"
        "[2026][train_inner][INFO] - epoch 001:     99 / 130 loss=nan, ppl=47.9, num_updates=99, lr=0.00025, wall=46\n"
        "[2026][valid][INFO] - epoch 001 | valid on 'valid' subset | loss 4.5 | ppl 12 | bleu 7.5 | num_updates 100\n"
        "2026 | INFO | train_inner | epoch 001:     50 / 130 loss=11.9, ppl=47.9, num_updates=50, lr=0.00025, wall=46\n"
    )
    line = [sys.executable, ROOT / "scripts/plot_training.py", log, "--output", tmp_path / "out"]
    subprocess.run(list(map(str, line)), check=True, env=ENVIRONMENT)
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == {
        "loss": {"cmlm": {"train": [[50, 11.9]], "valid": [[100, 4.5]]}},  # begun anew, and no number
        "bleu": {"cmlm": {"valid": [[100, 7.5]]}},
        "lr": {"cmlm": {"train": [[50, 0.00025], [99, 0.00025]]}},
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"training.json", "training.png", "training.svg"}


@pytest.mark.parametrize(
    "text, times, message",
    [
        ("no log\n", 1, "no log of fairseq-train"),
        ("2026 | INFO | train_inner | num_updates=3\n", 1, "no log of fairseq-train"),
        ("2026 | INFO | train_inner | loss=1, num_updates=3\n", 2, "two logs are of a run log"),
        (None, 1, "no log "),
    ],
)
def test_plotting_what_is_no_log_is_an_error(text, times, message, tmp_path):
    if text:
        (tmp_path / "log").write_text(text)
    script, log = ROOT / "scripts/plot_training.py", tmp_path / "log"
    line = map(str, [sys.executable, script, *[log] * times, "--output", tmp_path / "out"])
    done = subprocess.run(list(line), capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_timing_is_read_from_fairseqs_report():
    assert report.timing("... Translated 1,000 sentences (9 tokens) in 2.5s (400.00 sentences/s, ...") == (2.5, 400.0)
    assert report.timing("nothing") == (None, None)


def test_the_plugins_folder_is_the_package():
    from fastdiss_fairseq.tools.command import PLUGIN as folder

    assert folder == PLUGIN


# Export


@pytest.fixture(scope="module")
def bundle(data, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "model"
    tool("export", checkpoint, "--data", data, "--output", folder)
    return folder


def test_a_bundle_decodes_as_its_checkpoint_does(bundle, data, text, checkpoint):
    original = torch.load(checkpoint)
    assert (bundle / "model.pt").stat().st_size < checkpoint.stat().st_size / 4
    half = torch.load(bundle / "model.pt")
    assert half["last_optimizer_state"] is None and str(data) not in str(half["cfg"])
    assert (half["cfg"]["model"]["source_lang"], half["cfg"]["model"]["target_lang"]) == ("src", "tgt")
    for name, value in original["model"].items():
        assert torch.allclose(half["model"][name].float(), value.float(), atol=1e-3), name
    options = ("--decoding-steps", 2, "--seed", 1)
    expected = lines(generate(data, checkpoint, *options).stdout, "H")
    found = lines(generate(data, bundle / "model.pt", *options).stdout, "H")
    words = lambda output: [h[0].split("\t")[1] for _, h in sorted(output.items())]
    alike = sum(a == b for a, b in zip(words(found), words(expected)))
    assert alike >= 0.8 * len(expected)  # half precision may turn a close decision
    source = (text / "test.src").read_text()
    inside = fastdiss("interactive", bundle, "-s", "src", "-t", "tgt", "--path", bundle / "model.pt", "--cpu",
                      *options, "--buffer-size", 20, stdin=source)  # fmt: skip
    assert words(lines(inside.stdout, "H")) == words(found)


def test_a_bundle_says_nothing_of_where_it_was_trained(checkpoint):
    state = load_checkpoint_to_cpu(str(checkpoint))
    state["cfg"]["common"].update(log_file="/home/me/train.log", tensorboard_logdir="/home/me/tb", aim_repo="/home/me")
    state["cfg"]["checkpoint"].update(save_dir="/home/me/runs", finetune_from_model="/home/me/a.pt")
    assert "/home/me" in str(state["cfg"]) and "/home/me" not in str(export.slim(state, True, ("a", "b"))["cfg"])


def test_a_bundle_in_one_file_holds_the_same(bundle, data, checkpoint, tmp_path):
    tool("export", checkpoint, "--data", data, "--output", tmp_path / "new" / "model.zip")
    assert "all checksums agree" in tool("export", "--verify", tmp_path / "new" / "model.zip").stdout
    shutil.unpack_archive(tmp_path / "new" / "model.zip", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "bundle.json").read_text()) == json.loads(
        (bundle / "bundle.json").read_text()
    )
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.zip"]


def test_a_bundle_is_verified(bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    assert "all checksums agree" in tool("export", "--verify", copy).stdout
    with open(copy / "dict.src.txt", "a") as stream:
        stream.write("more 1\n")
    assert_one_line_error(tool("export", "--verify", copy, check=False), "dict.src.txt is not the file")
    (copy / "model.pt").unlink()
    assert_one_line_error(tool("export", "--verify", copy, check=False), "dict.src.txt")
    assert_one_line_error(tool("export", "--verify", tmp_path, check=False), "no bundle")
    assert_one_line_error(
        tool("export", "none.pt", "--data", copy, "--output", copy, check=False), "no checkpoint none.pt"
    )
    assert_one_line_error(tool("export", check=False), "--verify BUNDLE")


def test_a_bundle_needs_the_dictionaries_alone(checkpoint, data, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(FastDiSSError, match="no dictionary .*dict.src.txt"):
        export.export(checkpoint, tmp_path / "data", tmp_path / "bundle")
    for side in ("src", "tgt"):
        shutil.copy(data / f"dict.{side}.txt", tmp_path / "data")
    description = export.export(checkpoint, tmp_path / "data", tmp_path / "bundle")
    assert (description["source_lang"], description["target_lang"]) == ("src", "tgt")
    with pytest.raises(FastDiSSError, match="no data folder"):
        export.export(checkpoint, tmp_path / "none", tmp_path / "bundle")
    archive = Path(shutil.make_archive(tmp_path / "archive", "zip", tmp_path / "bundle"))
    for paths in ((archive, data), (checkpoint, archive)):
        with pytest.raises(FastDiSSError, match="archive.zip is a zip archive: unpack it first"):
            loading.load(*paths)


def test_a_bundle_knows_its_languages(bundle):
    line = ["interactive", bundle, "--path", bundle / "model.pt", "--cpu", "--decoding-steps", 1]
    assert len(lines(fastdiss(*line, stdin="s1 s2\n").stdout, "H")) == 1
    failed = fastdiss(*line, "-s", "tgt", "-t", "src", stdin="s1\n", check=False)
    assert_one_line_error(failed, "goes from src to tgt, not the other way")


def test_words_in_pieces_need_their_codes(checkpoint, data, text, tmp_path):
    """Else the bundle would read raw words as unknown and write pieces."""
    copy, codes = tmp_path / "data", tmp_path / "bpe.txt"
    shutil.copytree(data, copy)
    for side in ("src", "tgt"):
        file = copy / f"dict.{side}.txt"
        file.write_text(file.read_text().replace("s1 ", "s1@@ "))
    with pytest.raises(FastDiSSError, match="not those that the checkpoint was trained with"):
        export.export(checkpoint, copy, tmp_path / "a")
    state = torch.load(checkpoint)
    del state["model"]["dictionary_versions"]  # older ones do not say
    torch.save(state, tmp_path / "older.pt")
    failed = tool("export", tmp_path / "older.pt", "--data", copy, "--output", tmp_path / "a", check=False)
    assert_one_line_error(failed, f"no BPE codes {copy / 'codes'}, and the words come in pieces")
    codes.write_text("#version: 0.2\n")
    tool("export", tmp_path / "older.pt", "--data", copy, "--output", tmp_path / "b", "--codes", codes)
    assert (tmp_path / "b" / "codes").read_text() == codes.read_text()
    assert "all checksums agree" in tool("export", "--verify", tmp_path / "b").stdout


# Benchmark


def test_profile_says_where_the_time_goes(data, checkpoint, tmp_path):
    options = ["--parts", "profile", "--steps", 2, "--batch-sizes", 4, "--rounds", 1, "--cpu", "--max-tokens", 200]
    tool("benchmark", data, "--path", checkpoint, "--output", tmp_path, *options)
    records = json.loads((tmp_path / "results.json").read_text())
    of_system = {}
    for record in records:
        assert record["benchmark"] == "profile" and record["metric"] == "ms"
        of_system.setdefault((record["system"], record["batch"]), {})[record["part"]] = record
    assert {system for system, _ in of_system} == {"decoding, K = 2", *(f"training, {name}" for name in ablate.SYSTEMS)}
    for (system, _), parts in of_system.items():
        learning = system.startswith("training")  # where all but the passes without gradients is told apart
        encoder = "encoder and memory, for gradients" if learning else "encoder and memory"
        assert {encoder, "denoiser", "rest"} <= set(parts) and parts["denoiser"]["value"] > 0
        assert ("backward, for gradients" in parts) == learning
        assert sum(part["share"] for part in parts.values()) == pytest.approx(1, abs=0.01)
    assert "| decoding, K = 2 | denoiser |" in (tmp_path / "table.md").read_text()


@pytest.mark.skipif(torch.__version__ < "2.4", reason="fused on a CPU from torch 2.4 on")
def test_the_optimizers_are_timed(data, checkpoint, tmp_path):
    options = ["--parts", "optimizer", "--rounds", 3, "--cpu", "--output", tmp_path]
    done = tool("benchmark", data, "--path", checkpoint, *options)
    records = {r["system"]: r for r in json.loads((tmp_path / "results.json").read_text())}
    assert set(records) == {"adam", "fused_adam"} and {r["against"] for r in records.values()} == {"adam"}
    assert all(r["value"] > 0 and r["rounds"] == 3 for r in records.values())
    assert "| fused_adam |" in done.stdout


def test_mbr_is_timed_over_the_whole_split(data, checkpoint, tmp_path):
    options = ["--parts", "choice", "--steps", 2, "--candidates", 1, 3, "--batch-sizes", 4, "--rounds", 2, "--cpu"]
    tool("benchmark", data, "--path", checkpoint, "--output", tmp_path, *options)
    (record,) = json.loads((tmp_path / "results.json").read_text())
    assert (record["benchmark"], record["system"], record["candidates"], record["rounds"]) == ("choice", "mbr", 3, 2)
    assert 0 < record["value"] <= record["p95"] and record["sentences_per_second"] > 0


def test_evaluations_are_counted_as_each_model_tells_them():
    ours = [[{"steps": 5, "tokens": [1] * 9}, {"steps": 7}], [{"steps": 3}]]
    assert decoding_speed.evaluations(ours) == [5, 3]
    iterative = [[{"steps": 0, "tokens": [1, 2]}], [{"steps": 9, "tokens": [1]}]]  # NAT, CMLM with ten iterations
    assert decoding_speed.fairseq_evaluations(iterative) == [1, 10]
    assert decoding_speed.fairseq_evaluations([[{"tokens": [1, 2, 3]}, {"tokens": [1]}]]) == [3]


def test_a_benchmark_of_one_k_has_no_line(tmp_path):
    common = {"benchmark": "decoding", "candidates": None, "batch": 1, "value": 2.0, "p95": 3.0, "device": "CPU"}
    records = [{**common, "system": "fastdiss", "path": "fast", "steps": 5}, {**common, "system": "nat", "steps": None}]
    speed_report.write(records, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| fastdiss, K = 5 | 2.0 | 3.0 |" in text and "a + b K" not in text
    speed_report.write([*records, {**records[0], "steps": 10, "value": 4.5}], tmp_path)
    assert "| fastdiss | 1 | 5 10 | -0.5 | 0.50 |" in (tmp_path / "table.md").read_text()


def test_the_benchmark_says_where_paths_agree(data, checkpoint, tmp_path):
    options = ["--parts", "agreement", "--steps", 1, 3, "--batch-sizes", 4, "--variants", "bf16", "--cpu"]
    done = tool("benchmark", data, "--path", checkpoint, "--output", tmp_path, *options)
    records = json.loads((tmp_path / "results.json").read_text())
    assert [(r["path"], r["steps"]) for r in records] == [("reference", 1), ("bf16", 1), ("reference", 3), ("bf16", 3)]
    assert all(r["value"] == 100 for r in records if r["path"] == "reference")
    assert all(0 <= r["value"] <= 100 and r["sentences"] == 10 for r in records)
    assert "| fastdiss, K = 3, reference path | 100.0 |" in done.stdout


def test_benchmark_times_all_systems_on_the_same_batches(data, text, checkpoint, transformer, tmp_path):
    options = [
        "--steps",
        1,
        4,
        "--candidates",
        1,
        3,
        "--batch-sizes",
        1,
        4,
        "--rounds",
        2,
        "--cpu",
        "--max-tokens",
        200,
        "--variants",
        "bf16",
    ]
    done = tool("benchmark", data, "--path", checkpoint, "--ar", transformer, "--output", tmp_path, *options)
    records = json.loads((tmp_path / "results.json").read_text())
    decoding = [r for r in records if r["benchmark"] == "decoding"]
    assert {r["batch"] for r in decoding} == {1, 4, "tokens"}
    for size in (1, 4, "tokens"):
        found = [(r["system"], r["path"], r["steps"], r["candidates"]) for r in decoding if r["batch"] == size]
        ours = [
            ("fast", 1, 1),
            ("bf16", 1, 1),
            ("fast", 1, 3),
            ("bf16", 1, 3),
            ("fast", 4, 1),
            ("reference", 4, 1),
            ("bf16", 4, 1),
            ("fast", 4, 3),
            ("reference", 4, 3),
            ("bf16", 4, 3),
        ]
        stock = [(f"ar, beam {beam}", "fairseq", None, None) for beam in (1, 5)]
        assert found == [("fastdiss", *rest) for rest in ours] + stock
    assert all(0 < r["value"] <= r["p95"] and r["speed_ratio"] > 0 for r in records)
    assert next(r for r in decoding if r["system"] == "ar, beam 5")["speed_ratio"] == 1.0
    operators = {r["system"]: r["operators"] for r in records if r["benchmark"] == "training"}
    assert list(operators) == ["standard", "scp", "mans", "scp+mans", "ar"]
    assert None in operators.values() or operators["standard"] < operators["scp"] < operators["scp+mans"]
    assert all(r["working_memory_mb"] > 0 for r in records)
    steps = [r for r in records if r["benchmark"] == "step"]
    assert [(r["batch"], r["path"]) for r in steps] == list(itertools.product((1, 4, "tokens"), ("fast", "reference")))
    assert all(0 <= r["padding"] < 1 for r in steps)
    assert "| fastdiss, K = 4, 3 candidates, reference path |" in done.stdout
    evaluations = {r["system"]: set() for r in decoding}
    for r in decoding:
        evaluations[r["system"]].add(r["evaluations"] - (r["steps"] or 0))
    assert evaluations["fastdiss"] == {0} and all(2 <= tokens for tokens in evaluations["ar, beam 5"])
    assert "| fastdiss, 3 candidates | 4 | 1 4 |" in done.stdout  # time as a + b K
    if find_spec("matplotlib"):
        assert all((tmp_path / f"latency_by_steps.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))
    assert_one_line_error(
        tool("benchmark", data, "--path", "no", "--output", tmp_path, check=False), "no checkpoint no"
    )
    other = ["--path", transformer, "--output", tmp_path, "--parts", "choice", "--cpu"]
    assert_one_line_error(tool("benchmark", data, *other, check=False), "holds other work: checkpoint_sha256 differ")
    into_here = ["--path", checkpoint, "--reference", text / "test.tgt", "--output", tmp_path, "--cpu"]
    assert_one_line_error(tool("sweep", data, *into_here, check=False), "holds the results of another command")


@pytest.mark.parametrize("option", ["--steps", "--candidates", "--batch-sizes", "--max-tokens", "--rounds"])
def test_the_benchmark_counts_from_one(option, data, tmp_path):
    with pytest.raises(FastDiSSError, match=f"{option} must be at least 1"):
        benchmark.main([str(data), "--path", "no", "--output", str(tmp_path), option, "0"])


def test_records_of_a_benchmark_and_batch_stand_in_one_table(tmp_path):
    common = {"benchmark": "profile", "part": "encoder", "value": 2.0, "share": 0.5, "device": "CPU", "steps": None}
    records = [{**common, "system": f"K = {k}", "batch": size} for k in (1, 2) for size in (1, 8)]
    speed_report.write(records, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("**")] == [
        "**profile, batch: 1**",
        "**profile, batch: 8**",
    ]
