"""Data sets of the Hugging Face hub, streamed: `hub:OWNER/NAME[/CONFIGURATION][@SPLIT]`, or `hub:./FOLDER[@SPLIT]`.

The prefix is asked for so that nothing reaches out by a mistyped path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import CorpusError

HUB = "hub:"
_FORM = "write hub:OWNER/NAME, hub:OWNER/NAME/CONFIGURATION@SPLIT, or hub:./FOLDER"
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True, slots=True)
class HubName:
    """A data set of the hub, or a folder laid out like one."""

    repository: str
    """OWNER/NAME, or a folder."""
    config: str | None
    """Its configuration."""
    split: str
    """Its split."""
    is_local: bool
    """Whether it is a folder."""


def parse_hub_name(word: str) -> HubName:
    """Understand `hub:…`.

    Raises:
        CorpusError: It is not written so, or names a folder that is not there.
    """
    name, at, split = word.removeprefix(HUB).partition("@")
    if at and not split:
        raise CorpusError("no split stands behind the @", word, _FORM)
    split = split or "train"
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise CorpusError("there is no such folder", word, _FORM)
        return HubName(str(folder.resolve()), None, split, is_local=True)
    words = name.split("/")
    if not all(words) or len(words) > 3:
        raise CorpusError("this names no data set", word, _FORM)
    return HubName("/".join(words[:2]), words[2] if len(words) == 3 else None, split, is_local=False)


def hub_records(word: str, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """The records of a data set, one after another; none of them stays.

    Args:
        word: `hub:…`.
        columns: Columns wanted; None: all.

    Raises:
        CorpusError: There is no such data set, it cannot be reached or read, or the hub is not to be reached.
    """
    name = parse_hub_name(word)
    if not name.is_local:
        refused = [key for key in _OFFLINE if os.environ.get(key, "").upper() in ("1", "ON", "YES", "TRUE")]
        if refused:
            raise CorpusError(
                f"the hub is not to be reached: {refused[0]} is set",
                word,
                "unset it, or download the data set and give its folder",
            )
    import datasets

    try:
        rows = datasets.load_dataset(name.repository, name.config, split=name.split, streaming=True)
        if columns is not None and rows.column_names is not None and set(columns) <= set(rows.column_names):
            rows = rows.select_columns(list(columns))
        yield from rows
    except Exception as error:  # of datasets, huggingface_hub, fsspec, httpx, pandas, pyarrow: there is no common one
        told = " ".join(str(error).split())[:300]
        raise CorpusError(
            f"the data set cannot be read: {type(error).__name__}: {told}",
            word,
            "see its name, configuration and split on the hub, and the network",
        ) from None
