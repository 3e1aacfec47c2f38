"""Saying loudly when a tokenizer does not know the text it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from launcher.prepare.tokenizer import TokenizerHandle

LOUD_FROM = 0.005
"""Share of unknown tokens from which to speak up: bert-base-chinese without lower-casing has 1.07 % on Chinese wiki."""


def unknown_characters(handle: TokenizerHandle, texts: Iterable[str], limit: int = 12) -> list[str]:
    """What became the unknown token most often: characters where one is unknown by itself, words elsewhere."""
    unk = handle.info.special.unk
    lost: Counter[str] = Counter()
    for text in texts:
        encoding = handle.tokenizer.encode(text, add_special_tokens=False)
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id == unk:
                lost[text[start:end]] += 1
    return [piece for piece, _ in lost.most_common(limit)]


def warn_unknown(handle: TokenizerHandle, share: float, pieces: Iterable[str]) -> str | None:
    """What to tell of a tokenizer that knows too little of a text; None where it knows enough.

    Args:
        handle: The tokenizer.
        share: Of its tokens that are unknown.
        pieces: What became unknown most often.
    """
    if share <= LOUD_FROM:
        return None
    pieces = list(pieces)
    told = (
        f"WARNING: {share:.2%} of the tokens are unknown to {handle.info.name}; what they stood for is "
        "lost to the model.\n"
        f"  lost most often: {' '.join(pieces)}\n"
    )
    lowercases = any(piece != piece.lower() and handle.tokenizer.token_to_id(piece.lower()) for piece in pieces)
    letters = any(piece != piece.lower() for piece in pieces)
    if lowercases or letters:
        told += (
            "  cure: the vocabulary has no upper-case letters (bert-base-chinese has none): set "
            '"do_lower_case": true in its tokenizer_config.json,\n'
            "        or train a tokenizer on this text: "
        )
    else:
        told += "  cure: train a tokenizer on this text: "
    return told + "pretrain tokenizer CORPUS --kind wordpiece --vocab-size N --out DIR"
