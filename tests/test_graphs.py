"""Decoding as CUDA graphs.

Without a GPU the recordings are operators that are done again one by one, on the same memory.  What is recorded is computed
with fixed sizes, and never makes the host wait.
"""

import copy
import gzip
import operator
import os
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from conftest import ROOT
from helpers import batch, flow_model, model, sentences, task
from pretend_device import available, register, send, waits
from tape import Taped
from test_generator import words

from fastdiss_fairseq.compat import bfloat16, capture, kept_casts
from fastdiss_fairseq.diffusion import noise
from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.generation.candidates import Special
from fastdiss_fairseq.generation.config import decoding_defaults
from fastdiss_fairseq.generation.stages import Stages, round_up, upto
from fastdiss_fairseq.modules import graphs
from fastdiss_fairseq.modules.graphs import Graphs, Recorder
from fastdiss_fairseq.modules.places import Places, fixed_sizes
from fastdiss_fairseq.translator import FastDiSS

SOURCES = sentences(24, seed=5)
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
TEST_SET = Path(os.environ.get("MULTI30K") or ROOT.parent / "shared" / "data" / "multi30k") / "test_2016_flickr.de.gz"
WAYS = [
    (model, {}),
    (model, {"autocast": "bf16"}),
    (model, {"encoder_learned_pos": True, "decoder_learned_pos": True, "decoding_length_factor": 1.6}),
    (model, {"decoding_solver": "ddim"}),
    (model, {"decoding_solver": "dpmpp_2m", "decoding_estimate": "direct"}),
    (model, {"decoding_solver": "renoise", "decoding_self_conditioning": "recompute", "length_beam": 2}),
    (model, {"decoding_self_conditioning": "recompute", "decoding_estimate": "rounded"}),
    (model, {"length_beam": 3, "noise_beam": 2, "decoding_choice": "mbr", "decoding_repeats": "merge"}),
    (flow_model, {}),
    (flow_model, {"length_beam": 2, "noise_source": "uniform"}),
]


def called(value):
    """A parameter's name in the name of a test, the same in each process."""
    return getattr(value, "__name__", str(value))


every_way = pytest.mark.parametrize("make, options", WAYS, ids=called)


@pytest.fixture(autouse=not GPU)
def keys_as_on_a_gpu(monkeypatch):
    """A CPU computes keys of noise with numpy, which no recording would see."""
    monkeypatch.setattr(noise, "_bits", lambda key: key)


def pair(make, options):
    """A generator, a model, and the same with recordings."""
    request = {name: value for name, value in options.items() if name in decoding_defaults()}
    shape = {name: value for name, value in options.items() if name not in request}
    request = Namespace(**{"decoding_steps": 4, "decoding_repeats": "keep", **request})
    exact, recorded = (make(seed=3, **shape) for _ in range(2))
    if GPU:
        exact, recorded = exact.cuda(), recorded.cuda()
    recorded.graphs = Graphs(Recorder if GPU else Taped)
    return task().build_generator([exact], request), exact, recorded


def sent(sources):
    found = batch(sources)
    if GPU:
        found["net_input"] = {name: value.cuda() for name, value in found["net_input"].items()}
    return found


@every_way
def test_recordings_say_the_same(make, options, monkeypatch):
    monkeypatch.setattr("fastdiss_fairseq.generation.stages.BUCKET", 32)  # so that batches share recordings
    generator, exact, recorded = pair(make, options)
    for some in (SOURCES[:3], SOURCES[3:4], SOURCES[4:8], SOURCES[3:6], SOURCES, SOURCES[:3]):
        one, other = (generator.generate([net], sent(some)) for net in (exact, recorded))
        scores = [torch.stack([h["score"] for s in found for h in s]) for found in (one, other)]
        if options.get("autocast"):  # rounds otherwise in batches of another size
            assert (scores[0] - scores[1]).abs().median() < 0.05
            exact.graphs = Graphs(Recorder if GPU else Taped)
            one = generator.generate([exact], sent(some))
            scores[0], exact.graphs = torch.stack([h["score"] for s in one for h in s]), None
        assert words(one) == words(other)
        assert torch.allclose(*scores, atol=1e-4)
        assert [[h["steps"] for h in s] for s in one] == [[h["steps"] for h in s] for s in other]


@pytest.mark.slow
@pytest.mark.skipif(not TEST_SET.is_file(), reason="needs the test set of Multi30k (MULTI30K)")
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_recordings_of_the_shipped_model_say_the_same_on_a_test_set(steps):
    """In batches of 16, so that a recording serves several."""
    with gzip.open(TEST_SET, "rt", encoding="utf-8") as lines:
        sources = sorted(lines, key=len)
    exact, recorded = (FastDiSS.from_pretrained(ROOT / "models" / "multi30k_de_en", device=DEVICE) for _ in range(2))
    net = recorded.models[0]
    net.graphs, net.embedding.generation_fast = Graphs(Recorder if GPU else Taped), False  # a GPU keeps no table
    found = [translator.translate(sources, steps=steps, batch_size=16) for translator in (exact, recorded)]
    assert sum(map(operator.eq, *found)) == len(sources) == 1000
    assert 0 < len(net.graphs.recordings) < len(sources) / 16


def test_a_recording_serves_all_batches_of_its_size():
    generator, _, recorded = pair(model, {})
    recorded.graphs = Graphs(Taped)
    small = [source for source in SOURCES if len(source) <= 8]
    for some in (small[:3], small[1:4], small[:4]):
        generator.generate([recorded], sent(some))
    lengths = {round_up(int(h[0]["tokens"].size(0))) for h in generator.generate([recorded], sent(small[:4]))}
    assert recorded.graphs.record.count == len(recorded.graphs.recordings) <= 2 + len(lengths)


def test_other_options_are_other_recordings():
    _, _, recorded = pair(model, {})
    for steps in (2, 3, 2):
        built = task().build_generator([recorded], Namespace(decoding_steps=steps))
        assert built.generate([recorded], sent(SOURCES[:2]))[0][0]["steps"] == steps


@pytest.mark.parametrize("request_", [{"early_exit": True}, {"retain_iter_history": True}], ids=called)
def test_what_depends_on_results_is_not_recorded(request_):
    _, _, recorded = pair(model, {})
    built = task().build_generator([recorded], Namespace(decoding_steps=4, **request_))
    built.generate([recorded], sent(SOURCES[:2]))
    assert not recorded.graphs.recordings


def test_drawn_words_and_large_batches_are_not_recorded(monkeypatch):
    _, _, recorded = pair(flow_model, {})
    task().build_generator([recorded], Namespace(decoding_steps=4, decoding_temperature=1.0)).generate(
        [recorded], sent(SOURCES[:2])
    )
    monkeypatch.setattr("fastdiss_fairseq.generation.stages.GRAPHED_POSITIONS", 30)
    task().build_generator([recorded], Namespace(decoding_steps=4)).generate([recorded], sent(SOURCES[:9]))
    assert not recorded.graphs.recordings


def test_the_longest_unused_recordings_go(monkeypatch):
    monkeypatch.setattr(graphs, "capacity", lambda device: 30)
    found = Graphs(Taped)
    for width in (1, 2, 1, 3):
        assert found("sum", lambda x: (x.sum(),), torch.ones(width))[0] == width
    assert [key[1][0][0] for key in found.recordings] == [1, 3]
    assert found("sum", lambda x: (x.sum(),), torch.ones(20))[0] == 20 and len(found.recordings) == 1


def test_the_first_stage_is_recorded_once_for_all_numbers_of_steps():
    _, _, recorded = pair(model, {})
    for steps in (2, 3):
        task().build_generator([recorded], Namespace(decoding_steps=steps)).generate([recorded], sent(SOURCES[:2]))
    assert len(recorded.graphs.recordings) == 3


def test_threads_take_turns():
    generator, exact, recorded = pair(model, {})
    pairs = [sent(SOURCES[i : i + 2]) for i in range(0, 20, 2)]
    expected = [words(generator.generate([exact], some)) for some in pairs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda some: words(generator.generate([recorded], some)), pairs * 4))
    assert found == expected * 4


def test_what_moves_weights_gives_up_the_recordings():
    generator, _, recorded = pair(model, {})
    generator.generate([recorded], sent(SOURCES[:2]))
    assert recorded.graphs.recordings and not copy.deepcopy(recorded).graphs.recordings
    recorded.to_bfloat16()
    assert not recorded.graphs.recordings
    generator.generate([recorded], sent(SOURCES[:2]))
    assert recorded.graphs.recordings


def test_recordings_of_inference_mode_serve_outside():
    generator, exact, recorded = pair(model, {})
    with torch.inference_mode():
        generator.generate([recorded], sent(SOURCES[:2]))
    for some in (SOURCES[:2], SOURCES[2:4]):
        assert words(generator.generate([recorded], sent(some))) == words(generator.generate([exact], sent(some)))


def test_casts_are_kept_until_the_end():
    device, layer = torch.device("cuda" if GPU else "cpu"), torch.nn.Linear(3, 3)
    layer, x = layer.to(device), torch.ones(1, 3, device=device)

    def through():
        with torch.no_grad(), bfloat16(device):
            return layer(x).float()

    with kept_casts():
        first = through()
        with torch.no_grad():
            layer.weight.add_(100)
        assert torch.equal(through(), first)  # by the weights cast before
    assert not torch.equal(through(), first)
    with pytest.raises(ValueError), kept_casts():
        through()
        raise ValueError
    with torch.no_grad():
        layer.weight.sub_(100)
    assert torch.allclose(through(), first, atol=1e-2)


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_a_gpu_is_needed():
    with pytest.raises(FastDiSSError, match="CUDA graphs need a GPU"):
        Graphs(Recorder)("sum", lambda x: (x.sum(),), torch.ones(2))
    with pytest.raises(FastDiSSError, match="--decoding-cuda-graphs needs a GPU"):
        net = model()
        task(decoding_cuda_graphs=True).build_generator([net], Namespace()).generate([net], batch(SOURCES))


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_the_option_on_a_gpu():
    _, exact, other = pair(model, {})
    other.graphs = None
    built = task(decoding_cuda_graphs=True).build_generator([other], Namespace(decoding_steps=3))
    plain = task().build_generator([exact], Namespace(decoding_steps=3))
    for some in (SOURCES, SOURCES[::-1], SOURCES[:20], SOURCES):
        assert words(built.generate([other], sent(some))) == words(plain.generate([exact], sent(some)))
        junk = [torch.full((2**20,), float("nan"), device="cuda") for _ in range(20)]  # whatever was freed
        del junk
    assert len(other.graphs.recordings) == 2


@pytest.mark.skipif(not available(), reason="needs a torch that takes devices written in Python")
@every_way
def test_what_is_recorded_never_waits(make, options):
    register()
    generator, _, recorded = pair(make, options)
    with waits() as counted:
        recorded.graphs, recorded.autocasts = None, False
        net, tokens = send(recorded.cpu()), send(batch(SOURCES))["net_input"]["src_tokens"]
        stages = Stages(net, generator.decoding, Special.of(task().target_dictionary))
        with torch.no_grad(), fixed_sizes():
            counted.clear()
            begun = stages.begin(tokens)
            assert not counted
            longest = int(begun.lengths.max())
            counted.clear()
            stages.finish(begun.memory, begun.key, upto(begun.lengths, longest))
            assert not counted


def test_places_of_fixed_sizes_say_the_same():
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.4
    x, other = torch.randn(4, 5, 3), torch.randn(4, 5, 3)
    there = Places.of(mask)
    with fixed_sizes():
        fixed = Places.of(mask)
    assert fixed.take(x).shape == (20, 3) and len(there.take(x)) == int(mask.sum())
    assert torch.equal(there.replace(x, there.take(other)), fixed.replace(x, fixed.take(other)))
    assert torch.equal(there.put(there.take(x), elsewhere=7), fixed.put(fixed.take(x), elsewhere=7))


def test_unrecorded_batches_take_turns_with_recordings():
    """Casts that are kept are those of all threads: what a recording casts has no values yet."""
    generator, _, recorded = pair(model, {"early_exit": True})
    recorded.graphs.lock = held = MagicMock()
    generator.generate([recorded], sent(SOURCES[:3]))
    assert held.__enter__.call_count == held.__exit__.call_count == 1 and not recorded.graphs.recordings


def test_what_other_threads_do_does_not_end_a_recording(monkeypatch):
    """fairseq-generate pins coming batches while one is recorded."""
    modes = []
    monkeypatch.setattr(
        torch.cuda, "graph", lambda graph, pool=None, capture_error_mode="global": modes.append(capture_error_mode)
    )
    capture(None, pool=None)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool=None: modes.append("of torch 2.0"))
    capture(None, pool=None)
    assert modes == ["thread_local", "of torch 2.0"]
