"""Commands in processes of their own, forked from an interpreter that has read torch and fairseq: to a test they are
what a user starts, without the four seconds that each new interpreter takes to read these."""

import importlib
import multiprocessing
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from unittest import mock

import numpy
import torch

#: The plugin is not among them: each command finds it by itself.
READ = ["torch", "fairseq", "fairseq.tasks", "fairseq.models", "fairseq.trainer", "numpy", "sacrebleu", "sacremoses"]
INTERPRETER = multiprocessing.get_context("forkserver")
INTERPRETER.set_forkserver_preload(READ)


def become(module, arguments, environment, folder, streams):
    """What a forked process does: what the console command of this module does in a new one."""
    for number, stream in enumerate(streams):
        file = os.open(stream, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, encoding="utf-8")
    sys.argv = [module.rpartition(".")[2], *arguments]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    warnings.simplefilter("ignore")
    multiprocessing.set_start_method(None, force=True)  # the default again, for its own workers
    for generator in (random, numpy.random, torch):  # not that of the next process
        generator.seed()
    try:
        importlib.import_module(module).cli_main()
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def run(module, arguments, environment, folder, stdin="", timeout=300):
    """Run the console command of a module (its ``cli_main``) as ``subprocess.run`` would.

    Returns a ``CompletedProcess`` with text; raises ``subprocess.TimeoutExpired``, after the process was killed.
    """
    arguments = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as name:
        streams = [Path(name, stream) for stream in ("stdin", "stdout", "stderr")]
        for stream in streams:
            stream.write_text(stdin if stream.name == "stdin" else "", encoding="utf-8")
        process = INTERPRETER.Process(target=become, args=(module, arguments, environment, folder, streams))
        with mock.patch.dict(os.environ, environment):  # what the interpreter starts with
            process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutExpired(arguments, timeout)
        out, err = (stream.read_text(encoding="utf-8", errors="replace") for stream in streams[1:])
        return CompletedProcess(arguments, process.exitcode, out, err)
