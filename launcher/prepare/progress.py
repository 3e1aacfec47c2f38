"""How far a long work on the corpus is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from launcher import units
from launcher.prepare.part import Report

PRINT_EVERY_S = 30.0
"""Where there is no terminal (assumption: a line a minute is too few to see that it runs, one a second too many)."""


@contextmanager
def shown(title: str, total_bytes: int, console: Console) -> Iterator[Report]:
    """Show progress while the context lasts.

    Args:
        title: What is being done.
        total_bytes: Of all that is to be read.
        console: Where it is shown.

    Yields:
        To be told of what is done.
    """
    if not console.is_terminal:
        yield _Lines(title, total_bytes, console).add
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn(f"[bold]{title}[/]"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TextColumn("{task.fields[documents]} documents"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task(title, total=total_bytes, documents=0)
    documents = 0

    def add(num_bytes: int, num_documents: int) -> None:
        nonlocal documents
        documents += num_documents
        bar.update(task, advance=num_bytes, documents=documents)

    with bar:
        yield add


@contextmanager
def going_on(title: str, console: Console) -> Iterator[None]:
    """Say now and then that a call of a library lasts, of which nothing else is known.

    Args:
        title: What is being done.
        console: Where it is said; not on a terminal, on which the library draws a bar.
    """
    is_over = threading.Event()
    begun = time.monotonic()

    def tell() -> None:
        while not is_over.wait(PRINT_EVERY_S):
            console.print(f"{title}: {units.duration(time.monotonic() - begun)} so far", highlight=False)

    teller = threading.Thread(target=tell, daemon=True)
    if not console.is_terminal:
        teller.start()
    try:
        yield
    finally:
        is_over.set()
        if teller.ident is not None:
            teller.join()


class _Lines:
    """Progress where there is no terminal."""

    def __init__(self, title: str, total_bytes: int, console: Console) -> None:
        self._console, self._title, self._total = console, title, max(total_bytes, 1)
        self._bytes = self._documents = 0
        self._begun = self._told = time.monotonic()

    def add(self, num_bytes: int, num_documents: int) -> None:
        """Count on."""
        self._bytes += num_bytes
        self._documents += num_documents
        now = time.monotonic()
        if now - self._told >= PRINT_EVERY_S:
            self._told = now
            speed = self._bytes / (now - self._begun)
            left = units.duration((self._total - self._bytes) / speed) if speed else "?"
            self._console.print(
                f"{self._title}: {self._bytes / self._total:.0%}, {self._documents} documents, "
                f"{units.size(speed)}/s, {left} left",
                highlight=False,
            )
