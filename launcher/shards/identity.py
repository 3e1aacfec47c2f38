"""What makes two tokenizers the same: they give the same ids for every text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer

from launcher.errors import TokenizerError


def tokenizer_sha256(tokenizer_json: str) -> str:
    """Hash of a tokenizer's JSON in one canonical form, hexadecimal; the layout of its files does not count.

    Floats count to nine digits: the Rust library reads a unigram score back one bit off what it wrote.
    """
    fields = json.loads(tokenizer_json, parse_float=lambda digits: f"{float(digits):.9g}")
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def num_renamed(tokenizer: Tokenizer, other: Tokenizer) -> int:
    """Ids that both tokenizers have and give to different tokens."""
    mine, others = (
        {token_id: token for token, token_id in each.get_vocab(with_added_tokens=True).items()}
        for each in (tokenizer, other)
    )
    return sum(others.get(token_id, token) != token for token_id, token in mine.items())


def open_tokenizer(path: Path) -> Tokenizer:
    """Open a `tokenizer.json`.

    Raises:
        TokenizerError: It is missing or damaged.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        told = " ".join(str(error).split())
        raise TokenizerError(f"the tokenizer cannot be read: {told}", str(path), "restore the file") from None
