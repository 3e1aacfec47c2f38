"""Which documents are held out for validation."""

from __future__ import annotations

import xxhash

VALIDATION_SHARE = 0.02


def is_held_out(text: str, share: float = VALIDATION_SHARE) -> bool:
    """Whether a document is for validation: a pure function of its text.

    The same text always falls on the same side, in whatever order, file or corpus it comes, so that a duplicate of a
    held-out document is never trained on.

    Args:
        text: The document.
        share: Expected share of documents held out.
    """
    return xxhash.xxh3_64_intdigest(text.encode()) < share * 2**64
