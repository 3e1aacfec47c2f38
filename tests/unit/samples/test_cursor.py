"""A run goes on where it stopped, and on nothing but its own data."""

from __future__ import annotations

import json

import pytest

from launcher.errors import CheckpointError
from launcher.samples.cursor import Cursor


def test_a_cursor_comes_back_from_json_as_it_was() -> None:
    cursor = Cursor(position=12_345, fingerprint="0123456789abcdef", consumed={"law": 12_000, "wiki": 345})
    assert Cursor.from_dict(json.loads(json.dumps(cursor.to_dict()))) == cursor


def test_the_same_data_is_accepted() -> None:
    Cursor(10, "aaaa").check("aaaa")


def test_other_data_is_refused_with_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"sample 10 of another data order \(aaaa, now bbbb\)[\s\S]*put back"):
        Cursor(10, "aaaa").check("bbbb")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"version": 3, "position": 1, "fingerprint": "a"}, "version 3"),
        ({}, "version None"),
        ({"version": 2, "fingerprint": "a"}, "position None is not a count"),
        ({"version": 2, "position": -1, "fingerprint": "a"}, "position -1 is not a count"),
        ({"version": 2, "position": True, "fingerprint": "a"}, "position True is not a count"),
        ({"version": 2, "position": 1}, "fingerprint None is not text"),
        ({"version": 2, "position": 1, "fingerprint": "a"}, "None, are no counts"),
        ({"version": 2, "position": 1, "fingerprint": "a", "consumed": {"law": -1}}, "are no counts"),
    ],
    ids=[
        "later version",
        "empty",
        "no position",
        "negative",
        "not a number",
        "no fingerprint",
        "no counts",
        "negative counts",
    ],
)
def test_a_damaged_cursor_is_refused(state: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Cursor.from_dict(state)
