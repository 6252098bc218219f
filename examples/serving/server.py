"""Serve a bundle over HTTP: requests that arrive together are decoded together.

    pip install 'fastdiss-fairseq[serve]'
    python examples/serving/server.py models/multi30k_de_en --port 8000

POST /translate {"sentences": ["..."], "options": {"steps": 5}}; GET /health.  See README.md beside this file.
"""

import argparse
import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import List, NamedTuple

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as checked

from fastdiss_fairseq import FastDiSS, FastDiSSError


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    """How to decode; requests with equal options share batches."""

    steps: int = Field(5, ge=1, le=50, strict=True, description="network evaluations K")
    length_beam: int = Field(1, ge=1, le=10, strict=True)
    noise_beam: int = Field(1, ge=1, le=10, strict=True)
    choice: str = Field("score", pattern="^(score|mbr)$")
    repeats: str = Field("merge", pattern="^(merge|keep)$", description="words predicted twice in a row")
    length_factor: float = Field(1.0, ge=0.5, le=2.0, description="of the candidate lengths")
    early_exit: bool = Field(False, strict=True)


#: Sentences of a request.
SENTENCES = 64


class Query(BaseModel, extra="forbid"):
    sentences: List[str] = Field(min_length=1, max_length=SENTENCES)
    options: Options = Options()

    @field_validator("sentences")
    @classmethod
    def are_text(cls, sentences: List[str]) -> List[str]:
        """UTF-16's halves of characters, which JSON may name, are none."""
        "".join(sentences).encode()
        return sentences


class Answer(BaseModel):
    translations: List[str]


@dataclass(frozen=True)
class Limits:
    """``batch``: sentences decoded together; ``wait``: seconds to wait for more of them; ``queue``: requests that
    may wait; ``characters`` of a sentence; ``work`` of a request: characters x candidates x steps; ``seconds`` that a request
    may take, waiting included."""

    batch: int = 64
    wait: float = 0.005
    queue: int = 256
    characters: int = 2000
    work: int = 1_000_000
    seconds: float = 30.0

    def refusal(self, sentences: List[str], o: Options) -> str:
        """Why a request is too large; empty where it is not."""
        if max(map(len, sentences)) > self.characters:
            return f"a sentence may have at most {self.characters} characters"
        work = sum(map(len, sentences)) * o.length_beam * o.noise_beam * o.steps
        return f"characters x candidates x steps may be at most {self.work}, not {work}" if work > self.work else ""

    @property
    def body(self) -> int:
        """Bytes of a request: a character takes up to twelve in JSON."""
        return 12 * SENTENCES * self.characters


class Job(NamedTuple):
    sentences: List[str]
    options: Options
    done: asyncio.Future


class Batcher:
    """Decodes what waits in the queue, one batch at a time, in a thread of its own."""

    def __init__(self, model: FastDiSS, limits: Limits):
        self.model, self.limits = model, limits
        self.queue: asyncio.Queue = asyncio.Queue(limits.queue)
        self.thread = ThreadPoolExecutor(1)
        self.requests = self.batches = 0

    async def translate(self, sentences: List[str], options: Options) -> List[str]:
        """Raises asyncio.QueueFull where too many wait, asyncio.TimeoutError where it takes too long."""
        job = Job(sentences, options, asyncio.get_running_loop().create_future())
        self.queue.put_nowait(job)
        return await asyncio.wait_for(job.done, self.limits.seconds)

    async def run(self) -> None:
        """Serve for ever."""
        while True:
            jobs = await self._collect()
            for options in dict.fromkeys(job.options for job in jobs):
                await self._decode([job for job in jobs if job.options == options], options)

    async def _collect(self) -> List[Job]:
        """The first job that waits and those that come shortly after it, up to a batch."""
        jobs = [await self.queue.get()]
        deadline = asyncio.get_running_loop().time() + self.limits.wait
        while sum(len(job.sentences) for job in jobs) < self.limits.batch:
            remaining = deadline - asyncio.get_running_loop().time()
            try:
                job = self.queue.get_nowait() if remaining <= 0 else await asyncio.wait_for(self.queue.get(), remaining)
            except (asyncio.QueueEmpty, asyncio.TimeoutError):
                break
            jobs.append(job)
        return [job for job in jobs if not job.done.done()]  # not those that have waited too long

    async def _decode(self, jobs: List[Job], options: Options) -> None:
        sentences = [sentence for job in jobs for sentence in job.sentences]
        self.requests, self.batches = self.requests + len(jobs), self.batches + 1
        try:
            found = await asyncio.get_running_loop().run_in_executor(self.thread, self._call, sentences, options)
        except Exception as error:  # the batch fails, the server lives
            found, failure = None, error
        for job in jobs:
            if job.done.done():
                continue
            if found is None:
                job.done.set_exception(failure)
            else:
                job.done.set_result(found[: len(job.sentences)])
                found = found[len(job.sentences) :]

    def _call(self, sentences: List[str], o: Options) -> List[str]:
        named = dict(decoding_choice=o.choice, decoding_repeats=o.repeats, decoding_length_factor=o.length_factor)
        alike = dict(length_beam=o.length_beam, noise_beam=o.noise_beam, early_exit=o.early_exit)
        return self.model.translate(sentences, o.steps, batch_size=self.limits.batch, **named, **alike)


def create_app(model: FastDiSS, limits: Limits = Limits()) -> FastAPI:
    """The application, for uvicorn or another ASGI server."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        app.state.batcher = Batcher(model, limits)
        running = asyncio.create_task(app.state.batcher.run())
        yield
        running.cancel()

    app = FastAPI(title="FastDiSS", lifespan=lifespan)

    @app.middleware("http")
    async def bounded(request: Request, go_on):
        length = request.headers.get("content-length", "0" if request.method == "GET" else "")
        if not length.isdigit() or int(length) > limits.body:
            return JSONResponse({"detail": f"a request needs a Content-Length of at most {limits.body}"}, 413)
        return await go_on(request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError):
        """What is wrong, without what was sent, which may be no text at all."""
        return JSONResponse({"detail": [{"loc": e["loc"], "msg": e["msg"]} for e in error.errors()]}, 422)

    @app.get("/health")
    async def health():
        batcher = app.state.batcher
        return {
            "status": "ok",
            "waiting": batcher.queue.qsize(),
            "requests": batcher.requests,
            "batches": batcher.batches,
        }

    @app.post("/translate")
    async def translate(query: Query) -> Answer:
        refusal = limits.refusal(query.sentences, query.options)
        if refusal:
            raise HTTPException(413, refusal)
        try:
            return Answer(translations=await app.state.batcher.translate(query.sentences, query.options))
        except FastDiSSError as error:  # what this model has not, such as early exit of FS-DFM
            raise HTTPException(422, str(error)) from None
        except asyncio.QueueFull:
            raise HTTPException(503, "too many requests wait; try again", {"Retry-After": "1"}) from None
        except asyncio.TimeoutError:
            raise HTTPException(504, f"not done within {limits.seconds:g} seconds") from None

    return app


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder or file made by fastdiss-export")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--onnx", action="store_true", help="ONNX Runtime, for a CPU")
    parser.add_argument("--batch", type=int, default=Limits.batch, help="sentences decoded together")
    parser.add_argument("--wait", type=float, default=Limits.wait, help="seconds to wait for more of them")
    parser.add_argument("--queue", type=int, default=Limits.queue, help="requests that may wait")
    args = parser.parse_args()
    if args.batch < 1 or args.queue < 1 or args.wait < 0:
        parser.error("--batch and --queue must be at least 1, --wait at least 0")
    model = FastDiSS.from_pretrained(args.bundle, args.device, decoding_onnx=args.onnx)
    model.translate(["a"], steps=1)  # what cannot work ends here, and the first client does not wait
    app = create_app(model, Limits(batch=args.batch, wait=args.wait, queue=args.queue))
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
