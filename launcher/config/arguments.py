"""Numbers and names of a command line: types for argparse, which tells a wrong one with the option it stands behind."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from launcher.config.code_names import can_be_named


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def count(text: str) -> int:
    """A whole number of 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def gigabytes(text: str) -> float:
    """A number above 0."""
    return _number(text, lambda value: 0.0 < value < math.inf, "a number of gigabytes above 0")


def share(text: str) -> float:
    """A number from 0 to below 1."""
    return _number(text, lambda value: 0.0 <= value < 1.0, "a share between 0 and 1")


def temperature(text: str) -> float:
    """A number from 0 on."""
    return _number(text, lambda value: 0.0 <= value < math.inf, "a temperature of 0 or more")


def top_p(text: str) -> float:
    """A number above 0, up to 1."""
    return _number(text, lambda value: 0.0 < value <= 1.0, "a probability above 0, and at most 1")


def code_file(text: str) -> str:
    """The name of a Python file in a model's folder."""
    if not can_be_named(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a Python file in the model's folder")
    return text


def _number(text: str, fits: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value
