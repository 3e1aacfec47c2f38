"""DeepSpeed's compiled operations: built by one process of a node at a time, loaded by the others when it is done.

torch's builder guards a build by a file `lock` whose creator deletes it; killed, it leaves it, and everyone waits for
ever. Here ranks take turns by a lock that the kernel lifts when its holder dies, so what a killed build left is known.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder
from deepspeed.ops.op_builder.builder import OpBuilder
from deepspeed.ops.op_builder.pin_memory import PinMemoryBuilder
from torch.utils.cpp_extension import _import_module_from_library

from launcher.config.compiled_ops import PARTS, STAMP, Op, extensions_folder, is_ready, read_stamp, stamp_of
from launcher.errors import MissingDependencyError

BUILDERS = {"cpu_adam": CPUAdamBuilder, "pin_memory": PinMemoryBuilder, "async_io": AsyncIOBuilder}
LONGEST_BUILD_S = 1500.0
"""measured: async_io takes four minutes on two busy cores; below the half hour that ranks wait for each other."""
QUIET_S = 300.0
"""Seconds without a new file after which a build that is not ours counts as dead; a file takes two minutes at most."""


def load_op(op: Op, tell: Callable[[str], None] = print) -> None:
    """Compile an operation where that has not been done, and load it; returns at once where it is loaded already.

    Args:
        op: Its name.
        tell: Takes a line of what is waited for.

    Raises:
        MissingDependencyError: It cannot be compiled here, or somebody else takes too long at it.
    """
    folders = [extensions_folder(os.environ) / part for part in PARTS[op]]
    try:
        folders[-1].parent.mkdir(parents=True, exist_ok=True)
        with _turn(folders[-1].with_name(f"{op}.turn"), op) as left_unfinished:
            if is_ready(op, os.environ):
                _import(folders)
                return
            for folder in folders:
                _wait_for_others(folder, tell, quiet_s=0.0 if left_unfinished else QUIET_S)
                _forget_other_processors(folder)
            if not (folders[-1] / f"{op}.so").is_file():
                tell(f"compiling DeepSpeed's {op}, once a node: minutes")
            with _one_ninja():
                BUILDERS[op]().load(verbose=False)
            for folder in folders:
                (folder / STAMP).write_text(json.dumps(stamp_of(folder)), encoding="utf-8")
    except (RuntimeError, OSError, ImportError) as error:
        raise MissingDependencyError(
            f"DeepSpeed's {op} cannot be compiled or loaded here: {_reason(error)}", op, "pretrain doctor says more"
        ) from None


@contextmanager
def _turn(path: Path, op: str) -> Iterator[bool]:
    """Be the only process here that builds; tells whether the one before was killed while it did."""
    deadline = time.monotonic() + LONGEST_BUILD_S
    with path.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _give_up_after(deadline, op, path)
                time.sleep(0.2)
        file.seek(0)
        left_unfinished = bool(file.read())
        file.write("building\n")
        file.flush()
        yield left_unfinished
        file.truncate(0)


def _import(folders: list[Path]) -> None:
    """Load what is ready, without the builders: they ask the processor and ninja for seconds, rank after rank."""
    for folder in folders:
        module = _import_module_from_library(folder.name, str(folder), is_python_module=True)  # type: ignore[no-untyped-call]
        OpBuilder._loaded_ops[folder.name] = module
        BUILDERS[folder.name]().load(verbose=False)


def _forget_other_processors(folder: Path) -> None:
    """Delete what another kind of node compiled into a home that both see: it is for that one's instructions."""
    stamp = read_stamp(folder)
    if stamp and (folder / f"{folder.name}.so").is_file() and stamp.get("cpu") != stamp_of(folder)["cpu"]:
        shutil.rmtree(folder)


@contextmanager
def _one_ninja() -> Iterator[None]:
    """Let the environment's own ninja build, whatever PATH says: another version hashes commands otherwise, and takes
    all that is compiled for outdated (seen: two ways to start a run, and each start compiled for a minute and a half).
    """
    path = os.environ.get("PATH", "")
    if find_spec("ninja") is not None:
        import ninja

        os.environ["PATH"] = os.pathsep.join([str(ninja.BIN_DIR), path])
    try:
        yield
    finally:
        os.environ["PATH"] = path


def _wait_for_others(folder: Path, tell: Callable[[str], None], quiet_s: float) -> None:
    """Wait for a build of another program, or for the compilers of one that was killed; then delete a lock it left.

    Args:
        folder: Where a part is compiled.
        tell: Takes a line of what is waited for.
        quiet_s: Seconds without a new file or a compiler on this machine after which nobody is at work any more.
    """
    lock, deadline = folder / "lock", time.monotonic() + LONGEST_BUILD_S
    told = False
    while True:
        at_work = _someone_works_in(folder)
        if not at_work and not lock.exists():
            return
        if not at_work and _seconds_since_change(folder) >= quiet_s:
            tell(f"{lock} was left by a build that was killed, and is deleted")
            lock.unlink(missing_ok=True)
            return
        if not told:
            tell(f"another program compiles {folder.name}, or was killed at it: waiting for {folder}")
            told = True
        _give_up_after(deadline, folder.name, lock)
        time.sleep(0.2)


def _someone_works_in(folder: Path) -> bool:
    """Whether a process of this machine, such as ninja, has its current directory there."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if (process / "cwd").readlink() == folder.resolve():
                return True
    return False


def _seconds_since_change(folder: Path) -> float:
    return time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _give_up_after(deadline: float, op: str, path: Path) -> None:
    if time.monotonic() > deadline:
        raise MissingDependencyError(
            f"somebody else has been compiling DeepSpeed's {op} for {LONGEST_BUILD_S / 60:.0f} minutes",
            str(path),
            "look whether a compiler is still running; if not, delete the file",
        )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "error:" in line), lines[0])
