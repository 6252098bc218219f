"""FS-DFM through fairseq's commands and those of this package."""

import json

import pytest
import torch
from conftest import (
    MEMORY, MODEL, PLUGIN, ROOT, TRAINING, bleu_of, command, fastdiss, generate, lines, preprocess_to_memorise,
)  # fmt: skip
from test_tools import tool

SIZES = ["fsdfm_tiny" if word == "fastdiss_tiny" else word for word in MODEL]
STAGE_B = ["--step-aware", "--step-size-tilt", 0]


def train(data, save_dir, *arguments):
    return fastdiss("train", data, *SIZES, "--criterion", "fsdfm_loss", *TRAINING, "--save-dir", save_dir, *arguments)


def load(path):
    return torch.load(path)


@pytest.fixture(scope="module")
def stage_a(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage_a")
    done = train(
        data, folder, "--max-update", 12, "--eval-bleu", "--eval-bleu-args", '{"decoding_steps": 3}',
        "--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric",
    )  # fmt: skip
    log = done.stdout + done.stderr
    assert "flow_loss=" in log and "bleu" in log and (folder / "checkpoint_best.pt").exists()
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def stage_b(data, stage_a, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage_b")
    done = train(data, folder, *STAGE_B, "--finetune-from-model", stage_a, "--max-update", 10)
    assert "teacher_loss=" in done.stdout + done.stderr
    return folder / "checkpoint_last.pt"


def test_stage_b_begins_with_stage_a_and_its_average_follows(data, stage_a, tmp_path):
    options = [*STAGE_B, "--finetune-from-model", stage_a, "--teacher-decay", 0.75]
    train(data, tmp_path, *options, "--max-update", 1)
    before, after = load(stage_a)["model"], load(tmp_path / "checkpoint_last.pt")["model"]
    moved = 0
    for name, value in before.items():
        if value.is_floating_point():
            expected = 0.75 * value + 0.25 * after[name]
            assert torch.allclose(after["teacher." + name], expected, atol=1e-6), name
            moved += not torch.equal(after[name], value)
    assert moved > 10


@pytest.mark.slow
def test_resuming_stage_b_equals_never_stopping(data, stage_a, stage_b, tmp_path):
    for updates in (5, 10):
        train(data, tmp_path, *STAGE_B, "--finetune-from-model", stage_a, "--max-update", updates)
    whole, parts = (load(path)["model"] for path in (stage_b, tmp_path / "checkpoint_last.pt"))
    assert any(name.startswith("teacher.") for name in whole) and whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def text_of(done):
    return {key: rest[0].split("\t")[1] for key, rest in lines(done.stdout, "H").items()}


def test_generate_loses_no_sentence_and_does_not_depend_on_batches(data, stage_b):
    whole = generate(data, stage_b, "--decoding-steps", 4, "--print-step", "--noise-beam", 2)
    assert sorted(map(int, text_of(whole))) == list(range(10))
    assert all(rest == ["4"] for rest in lines(whole.stdout, "I").values())
    single = generate(data, stage_b, "--decoding-steps", 4, "--noise-beam", 2, "--batch-size", 1)
    assert text_of(single) == text_of(whole)


@pytest.mark.slow
def test_generate_uses_the_moving_average(data, stage_b, tmp_path):
    """Whatever the student has become."""
    state = load(stage_b)
    for name, value in state["model"].items():
        if value.is_floating_point() and not name.startswith("teacher."):
            value.zero_()
    torch.save(state, tmp_path / "zero.pt")
    assert text_of(generate(data, tmp_path / "zero.pt")) == text_of(generate(data, stage_b))


@pytest.mark.slow
def test_interactive_validate_nbest_history_and_reranking(data, stage_b, transformer, text):
    source = (text / "test.src").read_text() + "\n"
    typed = fastdiss(
        "interactive", data, "--path", stage_b, "--cpu", "--decoding-steps", 2, "-s", "src", "-t", "tgt", stdin=source
    )
    assert sorted(map(int, lines(typed.stdout, "H"))) == list(range(11))
    losses = fastdiss("validate", data, "--path", stage_b, "--cpu", "--valid-subset", "valid", "--max-tokens", 400)
    assert "flow_loss" in losses.stdout + losses.stderr
    done = generate(
        data, f"{stage_b}:{transformer}", "--decoding-choice", "ar", "--length-beam", 3, "--decoding-steps", 2,
        "--nbest", 2, "--retain-iter-history", "--print-step",
    )  # fmt: skip
    assert all(len(rest) == 2 for rest in lines(done.stdout, "H").values())
    assert {"0_0", "0_1"} <= set(lines(done.stdout, "E"))


def test_a_bundle_holds_the_model_that_decodes(data, stage_b, tmp_path):
    tool("export", stage_b, "--data", data, "--output", tmp_path, "--float32")
    found, original = load(tmp_path / "model.pt")["model"], load(stage_b)["model"]
    assert not any(name.startswith("teacher.") for name in found)
    assert all(torch.equal(value, original["teacher." + name]) for name, value in found.items())
    assert text_of(generate(data, tmp_path / "model.pt")) == text_of(generate(data, stage_b))
    learned = sum(value.numel() for value in found.values() if value.is_floating_point())
    assert json.loads((tmp_path / "bundle.json").read_text())["parameters"] == learned


def test_one_sweep_over_both_families(data, text, checkpoint, stage_a, stage_b, tmp_path):
    done = tool(
        "sweep", data, "--path", checkpoint, stage_a, stage_b, "--reference", text / "test.tgt", "--cpu", "--steps", 1, 2,
        "--self-conditioning", "previous", "none", "--output", tmp_path, "--metrics", "chrF",
    )  # fmt: skip
    records = json.loads((tmp_path / "results.json").read_text())
    cells = [(r["system"], r["steps"], r["solver"], r["estimate"], r["self_conditioning"]) for r in records]
    ours = [(name, k, "cumulative", "likeliest", None) for name in ("fsdfm", "fsdfm+steps") for k in (1, 2)]
    assert [cell for cell in cells if cell[0].startswith("fsdfm")] == ours and len(cells) == 8
    assert all(r["evaluations"] == r["steps"] for r in records if r["system"].startswith("fsdfm"))
    assert len({r["parameters"] for r in records if r["system"].startswith("fsdfm")}) == 1
    assert "| fsdfm+steps |" in done.stdout


@pytest.mark.slow
def test_the_benchmark_times_both_families(data, checkpoint, stage_b, tmp_path):
    options = ["--steps", 1, 3, "--candidates", 1, "--batch-sizes", 4, "--rounds", 1, "--cpu", "--max-tokens", 200]
    tool("benchmark", data, "--path", checkpoint, "--fsdfm", stage_b, "--output", tmp_path, *options)
    records = json.loads((tmp_path / "results.json").read_text())
    assert {(r["benchmark"], r["steps"]) for r in records if r["system"] == "fsdfm"} == {
        ("decoding", 1), ("decoding", 3), ("training", None),
    }  # fmt: skip
    swapped = tool("benchmark", data, "--path", stage_b, "--output", tmp_path / "other", *options, check=False)
    assert (
        "--path takes the checkpoint of a FastDiSS model; this one holds fsdfm_tiny" in swapped.stderr
        and swapped.returncode == 1
    )
    assert list((tmp_path / "other").iterdir()) == []  # still free for another model


@pytest.mark.slow
def test_hydra_trains_fsdfm_from_the_shipped_configuration(data, tmp_path):
    command(
        "hydra-train", f"--config-dir={ROOT}/examples/config", "--config-name=fastdiss", "+recipe=multi30k",
        f"task.data={data}", f"common.user_dir={PLUGIN}", "model._name=fsdfm_tiny", "criterion._name=fsdfm_loss", "model.autocast=none",
        "task.eval_bleu=false", "checkpoint.best_checkpoint_metric=loss", "task.source_lang=src", "task.target_lang=tgt",
        "checkpoint.maximize_best_checkpoint_metric=false", "common.cpu=true", "optimization.max_update=2",
        f"checkpoint.save_dir={tmp_path}/run", f"hydra.run.dir={tmp_path}", "dataset.num_workers=0", cwd=tmp_path,
    )  # fmt: skip
    assert load(tmp_path / "run" / "checkpoint_last.pt")["cfg"]["criterion"]["_name"] == "fsdfm_loss"


@pytest.mark.slow
def test_overfits_a_few_sentences_in_both_stages(tmp_path):
    """Words do repeat in this corpus."""
    data = preprocess_to_memorise(tmp_path)
    train(data, tmp_path / "a", *MEMORY, "--max-update", 900, "--log-interval", 100)
    first = tmp_path / "a" / "checkpoint_last.pt"
    train(
        data, tmp_path / "b", *MEMORY, *STAGE_B, "--finetune-from-model", first, "--max-update", 200, "--lr", 0.001,
        "--teacher-decay", 0.98, "--log-interval", 100,
    )  # fmt: skip
    for path in (first, tmp_path / "b" / "checkpoint_last.pt"):
        for steps in (1, 8):
            bleu = bleu_of(generate(data, path, "--decoding-steps", steps, "--decoding-repeats", "keep"))
            assert bleu > 90, (path, steps, bleu)
