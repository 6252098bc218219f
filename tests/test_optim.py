"""``--optimizer fused_adam``: fairseq's Adam in one kernel."""

import copy
from argparse import Namespace

import pytest
import torch
from commands import in_process
from conftest import MODEL, TRAINING
from fairseq.optim.adam import FairseqAdam
from test_exactness import differences, load

from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.optim import FusedAdam

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 4), reason="fused on a CPU from torch 2.4 on"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = Namespace(lr=[0.01], adam_betas="(0.9, 0.98)", adam_eps=1e-14, weight_decay=0.1, fp16_adam_stats=False)


def both():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).to(DEVICE)
    other = copy.deepcopy(net)
    return (net, FairseqAdam(OPTIONS, net.parameters())), (other, FusedAdam(OPTIONS, other.parameters()))


@pytest.mark.parametrize("max_norm", [0, 0.1, 100])
def test_the_same_updates_and_norms_as_fairseqs_adam(max_norm):
    pairs, inputs = both(), torch.randn(20, 4, 5).to(DEVICE)
    for batch in inputs:
        norms = []
        for net, optimizer in pairs:
            optimizer.zero_grad()
            optimizer.backward((net(batch) ** 2).sum())
            optimizer.multiply_grads(0.5)
            norms.append(float(optimizer.clip_grad_norm(max_norm)))
            optimizer.step()
        assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0.1
    for one, other in zip(*(net.parameters() for net, _ in pairs)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_options_of_apex_are_refused():
    with pytest.raises(FastDiSSError, match="fp16-adam-stats"):
        FusedAdam(Namespace(**{**vars(OPTIONS), "fp16_adam_stats": True}), torch.nn.Linear(2, 2).parameters())


def test_a_torch_without_it(monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")

    monkeypatch.setattr("fastdiss_fairseq.optim.FusedAdamW", refuse)
    with pytest.raises(FastDiSSError, match="newer torch"):
        FusedAdam(OPTIONS, torch.nn.Linear(2, 2).parameters())


def test_a_training_goes_on_exactly(data, tmp_path):
    def train(folder, updates):
        line = ["train", data, "--task", "fastdiss", *MODEL, "--criterion", "fastdiss_loss", *TRAINING, "--no-mans"]
        line += [
            "--optimizer",
            "fused_adam",
            "--max-update",
            updates,
            "--save-dir",
            tmp_path / folder,
            "--disable-validation",
        ]
        done = in_process(line)
        assert done.returncode == 0, done.stderr[-3000:]
        return load(tmp_path / folder / "checkpoint_last.pt")

    whole = train("whole", 8)
    train("halves", 4)
    halves = train("halves", 8)
    assert whole["last_optimizer_state"]["param_groups"][0]["fused"]
    assert not differences(whole["model"], halves["model"])
    assert not differences(whole["last_optimizer_state"]["state"], halves["last_optimizer_state"]["state"])
