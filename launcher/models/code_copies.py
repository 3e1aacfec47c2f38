"""The folder that a process runs a model's own code from: transformers copies the code there first.

By itself transformers takes one folder for all processes of a user, on all nodes that share a home, and a rank then
imports what another is amid writing. Here each process has its own, and deletes it. One that is killed cannot: the next
process on the host does it, and knows by a lock, which the kernel drops with the process that held it, in whichever
namespace of pids that ran.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from transformers import dynamic_module_utils

LOCK = "lock"


@cache
def own_copies() -> Path:
    """The folder of this process; transformers uses it from now on. What killed processes left is deleted first."""
    _delete_left()
    folder = _locked_folder()
    # A parent's, as multiprocessing hands it on: packages in it would hide those in this one.
    sys.path[:] = [place for place in sys.path if not Path(place).name.startswith(_prefix())]
    atexit.register(remove_copies)
    dynamic_module_utils.HF_MODULES_CACHE = str(folder)  # the variable of that name was read at the import
    return folder


def remove_copies() -> None:
    """Delete the copies of code that ran; for a process that ends without `atexit`."""
    if own_copies.cache_info().currsize:
        shutil.rmtree(own_copies(), ignore_errors=True)


def _prefix() -> str:
    """With the host: on some shared file systems a lock holds on one machine only."""
    return f"pretrain-code-{os.uname().nodename}-"


def _locked_folder() -> Path:
    hidden = Path(tempfile.mkdtemp(prefix=f".{_prefix()}"))
    try:
        lock = os.open(hidden / LOCK, os.O_CREAT | os.O_RDWR)  # never closed
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks: hidden, it is never taken for left
        return hidden
    return hidden.rename(hidden.with_name(hidden.name.removeprefix(".")))


def _delete_left() -> None:
    for entry in os.scandir(tempfile.gettempdir()):
        if entry.name.startswith(_prefix()) and _is_left(Path(entry.path)):
            shutil.rmtree(entry.path, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether the process of this user that had a folder is gone."""
    try:
        if folder.lstat().st_uid != os.geteuid():
            return False
        lock = os.open(folder / LOCK, os.O_RDWR)
    except OSError:  # just deleted
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
