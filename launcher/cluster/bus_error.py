"""A file that is cut short, or whose file system is gone, while it is mapped into memory: SIGBUS at the next touch.

Python's own handlers run between two instructions of Python, and this one never ends: the kernel would repeat it for
ever. So the handler is set past Python (`sigaction`), notes the address and stays where it is, without the
interpreter's lock; a thread of the rank (`launcher.engine.watch`) then finds which file was mapped there, and ends the
process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from types import TracebackType

from launcher.errors import EXIT_REQUEUE

PATIENCE_S = 20.0
"""How long the thread that met the error waits for the process to be ended; then it does so itself. Assumption."""

_SA_SIGINFO = 4


class _Info(ctypes.Structure):
    """The beginning of `siginfo_t` on 64-bit Linux, as it is for SIGBUS."""

    _fields_ = (
        ("number", ctypes.c_int),
        ("error", ctypes.c_int),
        ("code", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("address", ctypes.c_void_p),
    )


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_Info), ctypes.c_void_p)


class _Action(ctypes.Structure):
    """`struct sigaction` of glibc and musl on 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class BusErrors:
    """Catches the first bus error of this process; a context manager, of any thread."""

    def __init__(self) -> None:
        self._address: int | None = None
        self._handler = _Handler(self._park)  # kept: the kernel calls it
        self._before = _Action()

    def __enter__(self) -> BusErrors:
        self._set(_Action(handler=ctypes.cast(self._handler, ctypes.c_void_p), flags=_SA_SIGINFO), self._before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._set(self._before, None)

    def told(self) -> str:
        """Which file can no longer be read, in words; empty while all can."""
        if self._address is None:
            return ""
        name = mapped_at(self._address) or f"what was mapped at {self._address:#x}"
        return f"can no longer reach {name}: it was cut short, or its file system is gone or full (bus error)"

    def _park(self, _number: int, info: ctypes._Pointer[_Info], _context: int) -> None:
        try:
            self._address = info.contents.address or 0
            time.sleep(PATIENCE_S)
        finally:
            os._exit(EXIT_REQUEUE)

    @staticmethod
    def _set(action: _Action, before: _Action | None) -> None:
        if sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8:
            ctypes.CDLL(None).sigaction(int(signal.SIGBUS), ctypes.byref(action), before and ctypes.byref(before))


def mapped_at(address: int) -> str:
    """The file that is mapped at an address of this process; empty if none is."""
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        first, _, last = fields[0].partition("-")
        if int(first, 16) <= address < int(last, 16):
            return fields[5] if len(fields) > 5 and fields[5].startswith("/") else ""
    return ""
