"""The serving example, in process with a stand-in for the model, and once as a real server."""

import asyncio
import http.client
import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from conftest import ENVIRONMENT, ROOT

from fastdiss_fairseq import FastDiSSError

pytest.importorskip("fastapi", reason="needs pip install fastapi uvicorn httpx")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "serving" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


server = load("server")


class Model:
    """Answers in capitals, when it may; remembers its batches."""

    def __init__(self):
        self.calls, self.free = [], threading.Event()
        self.free.set()

    def translate(self, sentences, steps, **options):
        self.free.wait(10)
        self.calls.append((list(sentences), steps, options))
        if "fail" in sentences:
            raise RuntimeError("out of memory")
        if options["early_exit"]:
            raise FastDiSSError("--early-exit is for FastDiSS")
        return [sentence.upper() for sentence in sentences]


@pytest.fixture
def model():
    return Model()


def ask(client, *sentences, **options):
    return client.post("/translate", json={"sentences": list(sentences), "options": options})


def test_answers_and_passes_the_options_on(model):
    with TestClient(server.create_app(model)) as client:
        assert ask(client, "a", "b").json() == {"translations": ["A", "B"]}
        assert (
            ask(client, "a", steps=9, noise_beam=2, choice="mbr", repeats="keep", length_factor=1.06).status_code == 200
        )
        assert client.get("/health").json() == {"status": "ok", "waiting": 0, "requests": 2, "batches": 2}
    (_, steps, options) = model.calls[1]
    assert steps == 9 and options["noise_beam"] == 2 and options["decoding_choice"] == "mbr"
    assert options["decoding_repeats"] == "keep" and options["decoding_length_factor"] == 1.06
    assert model.calls[0][1] == 5


@pytest.mark.parametrize(
    "sentences, options, status",
    [
        ([], {}, 422),
        (["a"] * 65, {}, 422),
        (["a"], {"steps": 0}, 422),
        (["a"], {"steps": 51}, 422),
        (["a"], {"choice": "ar"}, 422),
        (["a"], {"length_beam": 11}, 422),
        (["a"], {"repeats": "drop"}, 422),
        (["a"], {"length_factor": 9}, 422),
        (["a"], {"steps": True}, 422),
        (["a"], {"steps": "5"}, 422),
        (["a" * 2001], {}, 413),
        (["a" * 1000] * 64, {"length_beam": 4}, 413),
        (["a" * 40000], {}, 413),
        (["a" * 2000] * 64 * 20, {}, 413),
    ],
)
def test_limits(model, sentences, options, status):
    with TestClient(server.create_app(model)) as client:
        assert ask(client, *sentences, **options).status_code == status
    assert model.calls == []


@pytest.mark.parametrize(
    "text", ['{"sentences": ["\\ud800"]}', '{"sentences": ["a"], "options": {"length_factor": NaN}}', "[", "{}"]
)
def test_what_is_no_request_is_refused_without_being_repeated(text, model):
    with TestClient(server.create_app(model), raise_server_exceptions=False) as client:
        refused = client.post("/translate", content=text, headers={"Content-Type": "application/json"})
        assert refused.status_code == 422 and {"loc", "msg"} == set(refused.json()["detail"][0])
        unsized = client.post("/translate", content=iter([b"{}"]), headers={"Content-Type": "application/json"})
        assert unsized.status_code == 413
    assert model.calls == []


def test_what_the_model_refuses_is_the_clients_mistake(model):
    """FS-DFM has no early exit."""
    with TestClient(server.create_app(model)) as client:
        refused = ask(client, "a", early_exit=True)
        assert refused.status_code == 422 and "early-exit" in refused.json()["detail"]
        assert ask(client, "a").status_code == 200


async def together(model, limits, *jobs):
    """Run jobs (sentences, options) that all arrive before the first is served."""
    batcher = server.Batcher(model, limits)
    waiting = [asyncio.ensure_future(batcher.translate(*job)) for job in jobs]
    await asyncio.sleep(0)
    running = asyncio.ensure_future(batcher.run())
    found = await asyncio.gather(*waiting, return_exceptions=True)
    running.cancel()
    return found


def test_requests_with_equal_options_share_a_batch(model):
    five, nine = server.Options(), server.Options(steps=9)
    jobs = (["a", "b"], five), (["c"], nine), (["d"], five)
    found = asyncio.run(together(model, server.Limits(), *jobs))
    assert found == [["A", "B"], ["C"], ["D"]]
    assert [(call[0], call[1]) for call in model.calls] == [(["a", "b", "d"], 5), (["c"], 9)]


def test_a_batch_has_a_size(model):
    jobs = [([str(i)], server.Options()) for i in range(5)]
    asyncio.run(together(model, replace(server.Limits(), batch=2), *jobs))
    assert [len(call[0]) for call in model.calls] == [2, 2, 1]


def test_a_failing_batch_does_not_end_the_server(model):
    jobs = (["fail"], server.Options()), (["a"], server.Options(steps=2))
    failed, answered = asyncio.run(together(model, server.Limits(), *jobs))
    assert isinstance(failed, RuntimeError) and answered == ["A"]


def test_too_many_and_too_slow(model):
    limits = replace(server.Limits(), queue=1, seconds=0.2)
    jobs = (["a"], server.Options()), (["b"], server.Options())
    first, second = asyncio.run(together(model, limits, *jobs))
    assert first == ["A"] and isinstance(second, asyncio.QueueFull)
    model.free.clear()
    with TestClient(server.create_app(model, limits)) as client:
        assert ask(client, "a").status_code == 504
        model.free.set()


@pytest.mark.slow
def test_a_real_server():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "examples/serving/server.py", "models/multi30k_de_en", "--port", str(port)]
    process = subprocess.Popen(line, cwd=ROOT, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)})
    try:
        for _ in range(240):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", "/health")
                assert json.loads(connection.getresponse().read())["status"] == "ok"
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.5)
        body = json.dumps({"sentences": ["Zwei Hunde spielen im Schnee."], "options": {"steps": 3}})
        connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        assert "dogs" in json.loads(connection.getresponse().read())["translations"][0]
        row = load("load_test").load(port, clients=4, requests=8, steps=1)
        assert row.startswith("| 4 | 1 |") and row.endswith("| 0 |")
    finally:
        process.terminate()
        process.wait(20)
