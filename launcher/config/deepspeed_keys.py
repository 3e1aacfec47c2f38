"""Which keys DeepSpeed reads, from a table made of its source and committed with its version.

DeepSpeed 0.19.8 ignores most misspelled keys and takes many values of a wrong kind without a word (measured); importing
it to ask takes seconds. A test makes the table again from the installed version (`WRITE_RECORD=1` writes it).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What DeepSpeed takes for one key."""

    type: str
    """bool, int, number, string, object, `one of` (values), or any."""
    null: bool = False
    """Whether null stands for nothing."""
    default: bool | int | float | str | None = None
    """What DeepSpeed uses without it, where that is a plain value."""
    values: Sequence[Any] = ()
    """The choices of `one of`."""
    ge: float | None = None
    """Least value."""
    gt: float | None = None
    """Value it must be above."""
    le: float | None = None
    """Greatest value."""
    lt: float | None = None
    """Value it must be below."""
    deprecated: str | None = None
    """What replaces it, where DeepSpeed has given it up."""


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


@cache
def keys_of(block: str) -> dict[str, Key]:
    """The keys of a block, by its dotted name; "" is the whole configuration. Empty where DeepSpeed tells none."""
    return {name: Key(**entry) for name, entry in _table()["blocks"].get(block, {}).items()}


def removed_keys(block: str) -> dict[str, str]:
    """Keys that DeepSpeed has given up and stops at, and what it says of them."""
    return dict(_table()["removed"].get(block, {}))


def other_version() -> str | None:
    """A warning where the installed DeepSpeed is another than the table was made of; None otherwise, or without one."""
    made_of = str(_table()["deepspeed"])
    try:
        installed = version("deepspeed")
    except PackageNotFoundError:
        return None
    if installed == made_of:
        return None
    return f"DeepSpeed {installed} is installed; its keys are checked against those of {made_of}"
