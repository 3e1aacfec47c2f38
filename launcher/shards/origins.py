"""`.docs`: where each document of a shard came from, 32 bytes a document.

Shapes: D documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ORIGIN = np.dtype([("number", "<u8"), ("segment", "<u4"), ("num_chars", "<u4"), ("text_hash", "V16")])
"""`number`: record or line inside its segment, from 1. `segment`: of the part the shard was made from. `num_chars` of
the text. `text_hash`: xxh3-128 of its UTF-8; zeros where nobody read a text, as of tokens that others wrote."""

UNTOLD_HASH = bytes(16)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a document came from."""

    source: str
    """File or hub name, as the corpus was given."""
    number: int
    """Line of a file of lines, number of the record otherwise, from 1."""
    num_chars: int
    """Of its text."""
    text_hash: str
    """xxh3-128 of its UTF-8, hexadecimal; empty where nobody read a text."""
