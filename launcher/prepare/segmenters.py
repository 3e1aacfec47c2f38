"""The programs that cut Chinese into words: a build asks one of them only, on whatever machines its parts are built.

rjieba is jieba's algorithm and dictionary in Rust, about twenty times as fast; they do not always cut alike.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launcher.errors import MissingDependencyError

Cut = Callable[[str], Iterable[str]]
"""The words of a text, end to end."""

_CLAIM, _FILE = "words", "segmenter"
"""A folder among the records, and the file in it: the one that marks words in this build."""


def installed_segmenters() -> list[str]:
    """Name and version of those installed here, the one to be preferred first."""
    found = []
    for name in _CUTTERS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def preferred_segmenter() -> str:
    """Name and version of the one to take.

    Raises:
        MissingDependencyError: None is installed.
    """
    found = installed_segmenters()
    if not found:
        raise MissingDependencyError(
            "marking Chinese words needs a segmenter", "--words", "pip install rjieba (or jieba)"
        )
    return found[0]


def cutter(segmenter: str) -> Cut:
    """What cuts, by its name and version."""
    return _CUTTERS[segmenter.partition(" ")[0]]()


def segmenter_of(records: Path) -> str:
    """The one that marks words in a build; empty where none has said so yet."""
    try:
        return (records / _CLAIM / _FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def claim(records: Path, segmenter: str) -> None:
    """Say, before a part is built, what marks words in this build: of several tasks the first does.

    Args:
        records: The folder of the build's records.
        segmenter: What this process takes.

    Raises:
        MissingDependencyError: Parts are marked by another one, or by one that is not installed here.
    """
    writing = records / f"{_CLAIM}.{os.uname().nodename}-{os.getpid()}"
    writing.mkdir(exist_ok=True)
    (writing / _FILE).write_text(segmenter, encoding="utf-8")
    try:
        os.replace(writing, records / _CLAIM)  # unlike a file it never takes the place of another's, which is not empty
    except OSError:
        if not segmenter_of(records):
            raise
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    marked = segmenter_of(records)
    here = installed_segmenters()
    if marked != segmenter or segmenter not in here:
        name, _, number = marked.partition(" ")
        raise MissingDependencyError(
            f"words are marked by {marked} in this build, and here is {' and '.join(here) or 'none'}: they may differ",
            str(records),
            f"pip install {name}=={number}, or delete the folder to mark all anew",
        )


def _rjieba() -> Cut:
    import rjieba

    cut: Cut = rjieba.cut
    return cut


def _jieba() -> Cut:
    import jieba

    jieba.setLogLevel("WARNING")
    cut: Cut = jieba.cut
    return cut


_CUTTERS = {"rjieba": _rjieba, "jieba": _jieba}
