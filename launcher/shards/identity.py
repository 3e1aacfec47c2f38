"""What makes two tokenizers the same: they give the same ids for every text."""

from __future__ import annotations

import hashlib
import json

from tokenizers import Tokenizer


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Hash of a tokenizer's JSON in one canonical form, hexadecimal; the layout of its files does not count.

    Floats count to nine digits: the Rust library reads a unigram score back one bit off what it wrote.
    """
    fields = json.loads(tokenizer.to_str(), parse_float=lambda digits: f"{float(digits):.9g}")
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
