"""Commands inside this process: what a user sees of them, without the seconds that a new interpreter takes."""

import contextlib
import importlib
import io
import logging
import sys
from subprocess import CompletedProcess
from unittest import mock

from conftest import PLUGIN

from fastdiss_fairseq.compat import accept_any_bytes


def in_process(line, stdin=b""):
    """Run a command line given as a list: a command of fairseq (``train``, ``generate``, ...; with the plugin) or one
    of the package's (``fastdiss-score``, ...).

    Errors go through ``sys.excepthook``, as the interpreter would send them, and give exit code 1.
    """
    name, *arguments = map(str, line)
    if name.startswith("fastdiss-"):
        module = importlib.import_module(f"fastdiss_fairseq.tools.{TOOLS.get(name[9:], name[9:])}")
    else:
        module = importlib.import_module(f"fairseq_cli.{name}")
        arguments += ["--user-dir", PLUGIN]
    out, err, code = io.StringIO(), io.StringIO(), 0
    typed = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8", errors="strict")
    command = name if name.startswith("fastdiss-") else f"fairseq-{name}"
    swapped = mock.patch.multiple(sys, argv=[command, *arguments], stdin=typed)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), swapped:
        accept_any_bytes()  # as importing the package does
        try:
            module.cli_main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=err)
        except BaseException as error:
            code = 1
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            logging.getLogger().setLevel(logging.INFO)
    return CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


#: Modules that are not called as their command.
TOOLS = {"score": "scoring"}
