"""How far two tokenizers are apart."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from launcher.shards.identity import num_renamed


def words(*tokens: str) -> Tokenizer:
    return Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=tokens[0]))


def test_ids_that_are_given_to_other_tokens_are_counted_and_those_of_one_alone_are_not() -> None:
    ours = words("[UNK]", "人", "民", "法", "院")
    assert num_renamed(ours, words("[UNK]", "人", "民")) == 0
    assert num_renamed(ours, words("[UNK]", "民", "人", "法", "院", "国")) == 2
    added = words("[UNK]", "人")
    added.add_special_tokens(["[MASK]"])
    assert num_renamed(ours, added) == 1
