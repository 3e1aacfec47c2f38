"""What makes two tokenizers the same: they give the same ids for every text."""

from __future__ import annotations

import hashlib

from tokenizers import Tokenizer


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Hash of a tokenizer's canonical JSON, hexadecimal; layout of its files and order of their keys do not count."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
