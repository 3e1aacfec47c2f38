"""The next batch is made while the one before is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

_END = object()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in the same order, each made by a thread while the one before is in use.

    A thread, not a process: while an accelerator computes, Python waits for it and another thread may run, and nothing
    has to be copied. Whatever making an item raises is raised where the item is asked for. One item more lies in
    memory; when the iterator is closed, the thread ends.

    Args:
        items: Made one at a time, none before the first is asked for.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="next-batch") as thread:
        coming = thread.submit(next, remaining, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, remaining, _END)
            yield item  # type: ignore[misc]  # no _END, so an Item
