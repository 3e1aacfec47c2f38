"""Which documents are held out for validation."""

from __future__ import annotations

import xxhash

VALIDATION_SHARE = 0.02


def is_held_out(text: str | bytes, share: float = VALIDATION_SHARE) -> bool:
    """Whether a document is for validation: a pure function of its text.

    The same text always falls on the same side, in whatever order, file or corpus it comes, so that a duplicate of a
    held-out document is never trained on.

    Args:
        text: The document, or its UTF-8.
        share: Expected share of documents held out.
    """
    utf8 = text.encode() if isinstance(text, str) else text
    return xxhash.xxh3_64_intdigest(utf8) < share * 2**64
