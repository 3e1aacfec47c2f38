"""Writing that does not end a run: a full disk, a file system that is away, a terminal that was closed.

What cannot be written now is kept and written later; what never can is said once, in the rank's own log.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

_log = logging.getLogger(__name__)

MOST_BYTES = 1 << 26
"""Kept for a file that cannot be written: days of lines. Assumption."""


class SteadyFile:
    """Appends whole lines to a file, at once or, where that fails, with the next one.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._waiting = b""
        self._is_away = False

    def write(self, line: str) -> None:
        """Append a line, and what waits before it."""
        self._waiting = (self._waiting + line.encode() + b"\n")[-MOST_BYTES:]
        try:
            while self._waiting:
                if self._descriptor < 0:
                    self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                # A disk that is nearly full takes a part: the rest follows when there is room.
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]
        except OSError as error:
            self._let_go()
            if not self._is_away:
                _log.warning("%s cannot be written: %s; its lines are kept until it can", self._path, error)
            self._is_away = True
            return
        if self._is_away:
            _log.warning("%s is written again", self._path)
        self._is_away = False

    def close(self) -> None:
        """Write what waits, if that is possible by now."""
        if self._waiting:
            self._waiting = self._waiting.removesuffix(b"\n")
            text, self._waiting = self._waiting.decode(errors="replace"), b""
            self.write(text)
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = -1


class SteadyStream:
    """A terminal or a pipe that may be gone: then nothing is written, and nothing fails.

    Args:
        stream: The real one.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding
        self._is_gone = False

    def write(self, text: str) -> int:
        """Write, or not."""
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        self._do(self._stream.flush)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of the real one."""
        return self._stream.fileno()

    def _do(self, act: Callable[[], object]) -> None:
        if self._is_gone:
            return
        try:
            act()
        except (OSError, ValueError) as error:
            self._is_gone = True
            _log.warning("what the run tells can no longer be written there: %s", error)
