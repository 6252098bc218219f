"""fastdiss-average and moving averages in training."""

import pytest
import torch
from conftest import generate, lines, train
from test_tools import assert_one_line_error, tool

from fastdiss_fairseq.tools import average, checkpoints
from fastdiss_fairseq.tools.records import count_parameters


def load(path):
    return torch.load(path, map_location="cpu", weights_only=False)


EMA = ["--store-ema", "--ema-decay", "0.6", "--save-interval-updates", 2, "--no-mans"]


@pytest.fixture(scope="module")
def averaged(data, tmp_path_factory):
    """Twelve updates with a moving average, checkpoints at 2, 4, 8, 10 (within epochs) and the last."""
    folder = tmp_path_factory.mktemp("ema")
    train(data, folder, "--max-update", 12, *EMA)
    return folder


def numbered(folder):
    return sorted(folder.glob("checkpoint_*_*.pt"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))


def test_the_average_is_the_mean_of_the_last_checkpoints_in_any_order(data, averaged):
    paths = numbered(averaged)
    done = tool("average", *reversed(paths), "--last", 2, "--output", averaged / "average.pt")
    assert [path.name in done.stdout for path in paths] == [False, False, True, True]
    first, second = (load(path)["model"] for path in paths[2:])
    found = load(averaged / "average.pt")
    assert found["last_optimizer_state"] is None and found["optimizer_history"][-1]["num_updates"] == 10
    for name, value in found["model"].items():
        expected = (first[name].double() + second[name].double()) / 2
        assert torch.equal(value, expected.to(value.dtype)), name
    assert any(not torch.equal(value, second[name]) for name, value in found["model"].items())
    assert len(lines(generate(data, averaged / "average.pt", "--decoding-steps", 2).stdout, "H")) == 10


def test_names_of_one_tensor_stay_so():
    shared = [torch.rand(3) for _ in range(2)]
    found = average.mean([{"a": table, "b": table, "c": table.clone()} for table in shared])
    assert found["a"] is found["b"] is not found["c"] and torch.allclose(found["a"], sum(shared) / 2)
    assert count_parameters(found) == 6 and count_parameters({"steps": torch.tensor(3)}) == 0


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoints.write({"a": 1}, tmp_path / "new" / "a.pt")
    monkeypatch.setattr(torch, "save", lambda state, stream: stream.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoints.write({"a": 2}, tmp_path / "new" / "a.pt")
    assert load(tmp_path / "new" / "a.pt") == {"a": 1}


def test_the_moving_average_is_what_its_definition_says(data, averaged, tmp_path):
    """One update more than a checkpoint: decay x (its average) + (1 - decay) x (the new weights)."""
    train(data, tmp_path, "--max-update", 1, *EMA)
    before = load(tmp_path / "checkpoint_last.pt")["extra_state"]["ema"]
    train(data, tmp_path, "--max-update", 2, *EMA)
    after = load(tmp_path / "checkpoint_last.pt")
    moved = 0
    for name, value in after["extra_state"]["ema"].items():
        if value.is_floating_point() and name in after["model"]:
            expected = 0.6 * before[name] + 0.4 * after["model"][name]
            assert torch.allclose(value, expected, atol=1e-6), name
            moved += not torch.equal(value, after["model"][name])
    assert moved > 10
    tool("average", tmp_path / "checkpoint_last.pt", "--ema", "--output", tmp_path / "ema.pt")
    taken = load(tmp_path / "ema.pt")
    assert "ema" not in taken["extra_state"]
    assert all(torch.equal(value, after["extra_state"]["ema"][name]) for name, value in taken["model"].items())
    assert len(lines(generate(data, tmp_path / "ema.pt", "--decoding-steps", 2).stdout, "H")) == 10


def test_resuming_keeps_the_moving_average(data, averaged, tmp_path):
    for updates in (7, 12):
        train(data, tmp_path, "--max-update", updates, *EMA)
    whole, parts = (load(folder / "checkpoint_last.pt")["extra_state"]["ema"] for folder in (averaged, tmp_path))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_several_trainings_are_warned_of(data, averaged, run, tmp_path):
    paths = numbered(averaged)[-2:]
    assert "several trainings" not in tool("average", *paths, "--output", tmp_path / "one.pt").stderr
    done = tool("average", paths[0], run / "checkpoint_last.pt", "--output", tmp_path / "two.pt", check=False)
    assert "several trainings" in done.stderr


def test_mistakes_are_one_line(averaged, transformer, tmp_path):
    last, out = averaged / "checkpoint_last.pt", tmp_path / "out.pt"
    run = lambda *arguments: tool("average", *arguments, "--output", out, check=False)
    assert_one_line_error(run(averaged / "none.pt"), "no checkpoint")
    assert_one_line_error(run(last, transformer), "not of one model")
    assert_one_line_error(run(transformer, "--ema"), "trained without --store-ema")
    assert_one_line_error(run(last, "--last", 0), "--last must be at least 1")
    assert not out.exists()
