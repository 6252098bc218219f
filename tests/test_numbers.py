"""Numbers that break, and batches at the edge of what there can be."""

import re

import pytest
import torch
from commands import in_process
from conftest import MODEL, TRAINING
from helpers import batch, criterion, model

from fastdiss_fairseq.safety import _stepping

EOS = 2

#: name: (sources, targets)
DEGENERATE = {
    "nothing but the end": ([[EOS]], [[EOS]]),
    "a source of one token": ([[EOS]], [[5, 6, 7, EOS]]),
    "a target of one token": ([[5, 6, 7, EOS]], [[EOS]]),
    "all but one are padding": ([[EOS], [EOS], [5] * 40 + [EOS]], [[EOS], [EOS], [6] * 40 + [EOS]]),
    "longer than the positions": ([[5] * 200 + [EOS]], [[6] * 200 + [EOS]]),
    "one long and one without a word": ([[5] * 200 + [EOS], [EOS]], [[EOS], [6] * 200 + [EOS]]),
}


@pytest.mark.parametrize("options", [{}, {"scp_hops": 2, "rounding": "exact", "log_noise_levels": True}], ids=str)
@pytest.mark.parametrize("name", list(DEGENERATE))
def test_degenerate_batches_train(name, options):
    loss, net = criterion(mans_start=0.0, **options), model().train()
    for update in (0, 1, 2):
        net.set_num_updates(update)
        net.zero_grad()
        total, tokens, logs = loss(net, batch(*DEGENERATE[name]))
        (total / tokens).backward()
        assert torch.isfinite(total) and 0 < tokens <= 64 * len(DEGENERATE[name][0])
        assert all(torch.isfinite(torch.as_tensor(value)).all() for value in logs.values())
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_a_loss_that_is_no_number_ends_the_training_and_names_its_batch(data, tmp_path):
    """A learning rate that throws the weights out of float32's range after the first update."""
    line = ["train", data, "--task", "fastdiss", *MODEL, "--criterion", "fastdiss_loss", *TRAINING]
    done = in_process([*line, "--lr", "1e38", "--max-update", 5, "--save-dir", tmp_path, "--save-interval-updates", 1])
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and message.startswith("fastdiss: error: update 2 stopped: "), done.stderr[-2000:]
    ids = list(map(int, re.search(r"the sentences \[([\d, ]+)\]", message).group(1).split(",")))
    assert len(ids) > 1 and len(set(ids)) == len(ids) and set(ids) <= set(range(120)) and "--lr" in message


def test_batches_without_ids_keep_their_own_error():
    """Tasks for several languages have batches of batches."""

    def broken(trainer, samples):
        raise FloatingPointError("Nan")

    with pytest.raises(FloatingPointError, match="Nan"):
        _stepping(broken)(None, [{"de-en": batch([[5, EOS]])}, None])
