"""On a device that is not the CPU everything stays there, says the same, and seldom makes the host wait.

The device is a pretended one, so this runs without a GPU; see :mod:`pretend_device` for what it cannot show.
"""

from argparse import Namespace

import pytest
import torch
from helpers import batch, criterion, flow_criterion, flow_model, model, sentences, task
from pretend_device import FIRST, available, register, send, waits
from test_generator import every_way, generator, words

from fairseq.models.transformer import TransformerModel, base_architecture
from fastdiss_fairseq.criterions.base import total

pytestmark = pytest.mark.skipif(not available(), reason="needs a torch that takes devices written in Python")

SOURCES, TARGETS = sentences(20, seed=3), sentences(20, seed=4, shortest=1)


def called(value):
    """A parameter's name in the name of a test, the same in each process."""
    return getattr(value, "__name__", str(value))


@pytest.fixture(autouse=True)
def device():
    register()
    with waits() as counted:
        yield counted


def test_the_device_is_apart_from_the_cpu(device):
    there = torch.arange(4.0, device=FIRST)
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(4)
    assert not device and (there * 2 + torch.tensor(1.0)).device == torch.device(FIRST) and not device
    assert (there + 1).tolist() == [1, 2, 3, 4] and device["_to_copy"] == 1
    assert there[there > 1].sum() == 5 and device["index"] == 1
    there.add_(torch.tensor([1, 2, 3, 4], device=FIRST))
    assert float(there[3]) == 7 and device["copy_"] == 1


# Decoding


def decode(net, sources=SOURCES, steps=3, **options):
    return generator(net, decoding_steps=steps, **options).generate([net], sources)


def found(hypotheses):
    return words(hypotheses), [hypothesis.get("history") and len(hypothesis["history"]) for hypothesis in hypotheses[0]]


@every_way
@pytest.mark.parametrize("history", [False, True])
def test_decoding_says_the_same(options, history):
    expected = decode(model(), batch(SOURCES), retain_iter_history=history, **options)
    assert found(decode(send(model()), send(batch(SOURCES)), retain_iter_history=history, **options)) == found(expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoding_estimate": "drawn", "decoding_temperature": 1.0},
        {"decoding_solver": "euler", "retain_iter_history": True},
        {"length_beam": 3, "noise_beam": 2, "decoding_choice": "mbr"},
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_fsdfm_says_the_same(options, source):
    expected = decode(flow_model(noise_source=source), batch(SOURCES), **options)
    assert found(decode(send(flow_model(noise_source=source)), send(batch(SOURCES)), **options)) == found(expected)


@pytest.mark.parametrize("make", [model, flow_model])
def test_half_precision_stays_there(make):
    hypotheses = decode(send(make().to(torch.bfloat16)), send(batch(SOURCES)), length_beam=2)
    assert all(hypothesis["tokens"][-1] == 2 for sentence in hypotheses for hypothesis in sentence)


def test_an_autoregressive_model_chooses_there():
    torch.manual_seed(0)
    sizes = dict(
        encoder_layers=1, decoder_layers=1, encoder_embed_dim=16, decoder_embed_dim=16, encoder_attention_heads=2
    )
    options = Namespace(**sizes, decoder_attention_heads=2, share_all_embeddings=True, dropout=0.0)
    base_architecture(options)
    reranker = TransformerModel.build_model(options, task()).eval()

    def choose(net, sources):
        built = task().build_generator(
            [net, reranker], Namespace(decoding_steps=3, length_beam=3, decoding_choice="ar")
        )
        return built.generate([net, reranker], sources)

    expected = choose(model(), batch(SOURCES))
    send(reranker)
    assert found(choose(send(model()), send(batch(SOURCES)))) == found(expected)


ways = pytest.mark.parametrize(
    "make, options, each", [(model, {}, 1), (model, {"decoding_solver": "ddim"}, 0), (flow_model, {}, 0)], ids=called
)


@ways
def test_waits_of_decoding_grow_with_the_steps_alone(make, options, each, device):
    net, counts = send(make()), {}
    for sources, steps in ((SOURCES, 3), (SOURCES[:4], 3), (SOURCES, 8)):
        here = send(batch(sources))
        device.clear()
        decode(net, here, steps, **options)
        counts[len(sources), steps] = sum(device.values())
    assert counts[4, 3] == counts[20, 3] <= 16
    assert counts[20, 8] - counts[20, 3] == 5 * each


# Training

STANDARD = {"no_scp": True, "no_mans": True}
MANS_FROM_THE_START = {"mans_start": 0.0}
CASES = [
    (model, criterion, {}, STANDARD),
    (model, criterion, {}, {**MANS_FROM_THE_START, "log_noise_levels": True}),
    (model, criterion, {}, {**MANS_FROM_THE_START, "scp_hops": 2, "scp_rule": "uniform", "scp_coupling": "fresh"}),
    (model, criterion, {}, {"rounding": "exact", "label_smoothing": 0.1, "self_conditioning_estimate": "direct"}),
    (flow_model, flow_criterion, {}, {}),
    (flow_model, flow_criterion, {"step_aware": True}, {"step_size_tilt": 0.0}),
    (flow_model, flow_criterion, {"step_aware": True, "noise_source": "mask"}, {"teacher": "heun"}),
]
every_training = pytest.mark.parametrize("make, judge, shape, options", CASES, ids=called)


def step(make, judge, shape, options, there):
    net, loss, sample = make(**shape).train(), judge(**options), batch(SOURCES, TARGETS)
    net.set_num_updates(5)
    if there:
        net, sample = send(net), send(sample)
    value, _, logs = loss(net, sample)
    value.backward()
    gradients = {name: p.grad.cpu() for name, p in net.named_parameters() if p.grad is not None}
    return gradients, total([logs, logs])


@every_training
def test_training_says_the_same(make, judge, shape, options):
    (gradients, logs), (expected, expected_logs) = (step(make, judge, shape, options, there) for there in (True, False))
    assert set(gradients) == set(expected) and logs == pytest.approx(expected_logs, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], atol=1e-5 * max(1.0, float(expected[name].abs().max()))), name


@every_training
def test_a_training_step_waits_before_its_networks_run_and_not_again(make, judge, shape, options, device):
    net, sample, loss = send(make(**shape).train()), send(batch(SOURCES, TARGETS)), judge(**options)
    seen = []
    predict = net.denoiser.forward
    net.denoiser.forward = lambda *args: seen.append(dict(device)) or predict(*args)
    device.clear()
    value, _, logs = loss(net, sample)
    value.backward()
    jumps = {"index"} if shape.get("step_aware") else set()  # the teacher's: how many words leave
    assert device["nonzero"] == seen[0]["nonzero"] <= 6 and set(device) <= {"nonzero"} | jumps
    device.clear()
    judge().reduce_metrics([logs])
    assert device["_to_copy"] + device["_local_scalar_dense"] <= 1 + 6 * bool(options.get("log_noise_levels"))
