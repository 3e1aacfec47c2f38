"""The programs themselves, as ranks run them: functions of plain values, for `ranks.run_ranks`."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path


def train(arguments: list[str]) -> int:
    """The training program itself; returns its exit code."""
    sys.argv = ["launcher.train", *arguments]
    program = runpy.run_module("launcher.train", run_name="launcher_train")
    return int(program["main"](arguments))


def train_and_tell(arguments: list[str]) -> tuple[int, str]:
    """The training program; returns its exit code and what it wrote to stderr."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        code = train(arguments)
    return code, told.getvalue()


def train_aloud(arguments: list[str]) -> tuple[int, str]:
    """The training program; returns its exit code and all that it wrote, to stdout and stderr."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        code = train(arguments)
    return code, told.getvalue()


def check(words: list[str], out: str) -> int:
    """`pretrain check`; what rank 0 prints goes to a file."""
    from launcher.probe.__main__ import main

    sys.argv = ["launcher.probe", *words]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        code = main()
    if told.getvalue():
        Path(out).write_text(told.getvalue())
    return code


def meet(variables: dict[int, dict[str, str]], patience_s: float) -> str:
    """Join the other ranks with some of the variables changed, by rank; returns what came of it."""
    from datetime import timedelta

    from launcher.cluster.rank import find_place
    from launcher.engine import process
    from launcher.errors import ClusterError

    process.RENDEZVOUS_TIMEOUT = timedelta(seconds=patience_s)
    os.environ.update(variables.get(int(os.environ["RANK"]), {}))
    try:
        process.join_ranks(find_place(os.environ), 1)
    except ClusterError as error:
        return str(error)
    except Exception as error:
        return f"waited: {type(error).__name__}"
    return "met"


def load_cpu_adam(folder: str) -> list[str]:
    """Load DeepSpeed's CPU Adam, compiled into `folder` if need be; returns what was told on the way."""
    os.environ["TORCH_EXTENSIONS_DIR"] = folder
    from launcher.engine.compiled_ops import load_op

    told: list[str] = []
    load_op("cpu_adam", told.append)
    return told
