"""Saying loudly when a tokenizer does not know the text it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers.normalizers import BertNormalizer

from launcher.prepare.tokenizer import TokenizerHandle

LOUD_FROM = 0.005
"""Share of unknown tokens from which to speak up: bert-base-chinese without lower-casing has 1.07 % on Chinese wiki."""

CURE_OF_NEW = "give it a larger --vocab-size, or more of the text to learn from (--sample-megabytes)"
"""For a tokenizer that was trained on this text a moment ago."""


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


def warn_unknown(handle: TokenizerHandle, share: float, pieces: Sequence[str], cure: str) -> str | None:
    """What to tell of a tokenizer that knows too little of a text; None where it knows enough.

    Args:
        handle: The tokenizer.
        share: Of its tokens that are unknown.
        pieces: What became unknown most often.
        cure: What to do about it.
    """
    if share <= LOUD_FROM:
        return None
    return (
        f"WARNING: {share:.2%} of the tokens are unknown to {handle.info.name}; what they stood for is "
        "lost to the model.\n"
        f"  lost most often: {' '.join(pieces)}\n"
        f"  cure: {cure}"
    )


def cure_of(handle: TokenizerHandle, pieces: Sequence[str]) -> str:
    """What to do about a tokenizer to which these pieces of a text are unknown."""
    train = "train a tokenizer on this text: pretrain tokenizer CORPUS --kind wordpiece --vocab-size N --out DIR"
    if not _would_lower_case_cure(handle, pieces):
        return train
    return (
        "the vocabulary has them in lower case only (as bert-base-chinese has all Latin): set "
        '"do_lower_case": true in its tokenizer_config.json (where no class of BERT is named there or in config.json: '
        f'"lowercase": true in the normalizer of its tokenizer.json),\n        or {train}'
    )


def _would_lower_case_cure(handle: TokenizerHandle, pieces: Sequence[str]) -> bool:
    """Whether some of these unknown pieces would be known to it, were it told to lower-case its texts."""
    if not isinstance(handle.tokenizer.normalizer, BertNormalizer):  # of others no setting says so
        return False
    lowered = (handle.tokenizer.encode(piece.lower(), add_special_tokens=False).ids for piece in pieces)
    return any(handle.info.special.unk not in ids for ids in lowered)
