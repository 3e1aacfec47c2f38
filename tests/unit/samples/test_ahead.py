"""Batches made ahead: the same ones, their errors where they are asked for, no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from launcher.errors import ShardError
from launcher.samples.ahead import ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("next-batch")]


def test_the_items_are_the_same_in_the_same_order() -> None:
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []
    assert list(ahead([None, None])) == [None, None]
    assert threads() == []


def test_the_next_item_is_made_while_one_is_in_use_and_no_more_than_that() -> None:
    made = [threading.Event() for _ in range(4)]
    makers = []

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            makers.append(threading.current_thread())
            event.set()
            yield number

    taken = ahead(items())
    assert not made[0].is_set()  # nothing before it is asked for
    assert next(taken) == 0
    assert made[1].wait(timeout=60)
    assert not made[2].is_set()
    assert list(taken) == [1, 2, 3]
    assert threading.main_thread() not in makers


def test_what_goes_wrong_is_raised_where_the_item_is_asked_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ShardError("block 7", "train-00000.bin", "restore the file")

    taken = ahead(items())
    assert next(taken) == 1
    with pytest.raises(ShardError, match="block 7"):
        next(taken)
    assert threads() == []


def test_who_stops_early_leaves_no_thread_behind() -> None:
    taken = ahead(range(10**9))
    assert next(taken) == 0
    assert len(threads()) == 1
    taken.close()  # type: ignore[attr-defined]
    assert threads() == []
