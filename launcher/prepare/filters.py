"""Which records are kept: empty ones, wrong types, lengths, and whatever the user says. No more curation than that.

datatrove and dolma curate; what they write is read here.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from launcher.errors import CorpusError, UsageError, did_you_mean

Predicate = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """Which records are kept.

    Raises:
        UsageError: The lengths exclude each other.
    """

    min_chars: int | None = None
    """Shorter texts are dropped."""
    max_chars: int | None = None
    """Longer texts are dropped."""
    keep: str | None = None
    """`module:function` of the user's; it is given the record (a dict) and says whether to keep it."""

    def __post_init__(self) -> None:
        for name in ("min_chars", "max_chars"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} is {number}", name, "use 1 or more")
        if self.min_chars is not None and self.max_chars is not None and self.min_chars > self.max_chars:
            told = f"no text has at least {self.min_chars} and at most {self.max_chars} characters"
            raise UsageError(told, "min_chars, max_chars", "let the minimum be below the maximum")

    def fingerprint(self) -> str:
        """Of all that decides what is kept: of the user's function, the text of its module where Python knows it.

        Of the module, as a function stands on constants and functions beside it. What it imports is not looked at.

        Raises:
            UsageError: There is no such function.
        """
        source = "" if self.keep is None else _source(find_predicate(self.keep))
        return xxhash.xxh3_64_hexdigest(repr((self.min_chars, self.max_chars, self.keep, source)).encode())


def find_predicate(name: str) -> Predicate:
    """Import `module:function`, or `module.function`; modules of the current folder can be named.

    Raises:
        UsageError: There is no such module or function.
    """
    module_name, _, function = name.partition(":") if ":" in name else name.rpartition(".")
    if not module_name or not function:
        raise UsageError(f"{name!r} names no function", "--keep", "write module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()  # it may have been written a moment ago
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises when it is imported
        told = f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        raise UsageError(told, "--keep", "run from the folder it lies in, or install it") from None
    predicate = getattr(module, function, None)
    if not callable(predicate):
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        known = [key for key, value in own.items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{module_name} has no function {function!r}", "--keep", did_you_mean(function, known))
    return predicate  # type: ignore[no-any-return]


def _source(predicate: Predicate) -> str:
    for known in (inspect.getmodule(predicate), predicate):
        try:
            return inspect.getsource(known)  # type: ignore[arg-type]
        except (OSError, TypeError):  # built in, or made on the spot
            continue
    return ""


class Filters:
    """Decides record by record, and counts.

    Args:
        options: Which are kept.
        text_field: The field that holds the text.
        counts: Filled on the way: `read`, `kept`, and what was dropped by reason: `empty`, `not_text`, `too_short`,
            `too_long`, `rejected`.
    """

    def __init__(self, options: FilterOptions, text_field: str, counts: Counter[str]) -> None:
        self._min, self._max = options.min_chars or 0, options.max_chars or sys.maxsize
        self._keep = options.keep
        self._predicate = None if options.keep is None else find_predicate(options.keep)
        self._text_field, self._counts = text_field, counts

    def accept(self, fields: Any, where: Callable[[], str]) -> str | None:
        """The text of a record that is kept, None of one that is not.

        Args:
            fields: The record.
            where: Tells file and line, if something is wrong with it.

        Raises:
            CorpusError: The record is no object, has no such field, or the user's function failed on it.
        """
        try:
            text = fields[self._text_field]
        except (KeyError, TypeError, IndexError):
            raise self._unreadable(fields, where()) from None
        counts = self._counts
        counts["read"] += 1
        if not isinstance(text, str):
            reason = "not_text"
        elif not text or text.isspace():
            reason = "empty"
        elif len(text) < self._min:
            reason = "too_short"
        elif len(text) > self._max:
            reason = "too_long"
        elif self._predicate is not None and not self._ask(fields, where):
            reason = "rejected"
        else:
            counts["kept"] += 1
            return text
        counts[reason] += 1
        return None

    def _ask(self, fields: dict[str, Any], where: Callable[[], str]) -> bool:
        if self._predicate is None:
            return True
        try:
            return bool(self._predicate(fields))
        except (Exception, SystemExit) as error:  # whatever the user's function, or the truth of its answer, raises
            told = f"{self._keep} failed on the record: {type(error).__name__}: {error}"
            raise CorpusError(told, where(), "mend the function") from None

    def _unreadable(self, fields: Any, where: str) -> CorpusError:
        if not isinstance(fields, dict):
            fix = f'write {{"{self._text_field}": "…"}}'
            return CorpusError(f"the record is {_kind(fields)}, not an object", where, fix)
        fix = f"{did_you_mean(self._text_field, fields)} (--text-field)" if fields else "delete the empty record"
        return CorpusError(f"the record has no field {self._text_field!r}", where, fix)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
