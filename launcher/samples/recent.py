"""What was computed last, because it will be asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The last few values of a pure function; the one not asked for the longest goes first.

    Several threads may share it: at worst a value is computed twice.

    Args:
        num_values: How many are kept.
    """

    def __init__(self, num_values: int) -> None:
        self._num_values = num_values
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, compute: Callable[[Key], Value]) -> Value:
        """The value of `key`, computed unless it is kept."""
        values = self._values
        value = values.pop(key, None)
        if value is None:
            value = compute(key)
        values[key] = value
        if len(values) > self._num_values:
            values.popitem(last=False)
        return value

    def __len__(self) -> int:
        return len(self._values)
