"""Characters that are too new to be trusted to a program with Unicode tables of its own."""

from __future__ import annotations

import numpy as np
import pytest

from launcher.prepare.encoders import (
    FAST,
    OWN,
    EncodeOptions,
    GuardedEncoder,
    ReferenceEncoder,
    build_encoder,
    installed,
)
from launcher.prepare.tokenizer_training import train_tokenizer
from launcher.prepare.young_characters import FIRST, with_young_characters, young_characters


@pytest.mark.parametrize(
    ("text", "is_young"),
    [
        ("", False),
        ("plain", False),
        ("“中文” café 🤣🥺 1️⃣ 👍🏽 한국어", False),
        ("private \ue000 \U00100000", False),
        ("a letter of Unicode 17: \U000323b0", True),
        ("of a plane without any: \U00050000", True),
        ("a mark of Unicode 14: \u1ac4", True),
        ("never given: \uffff", True),
    ],
)
def test_what_is_young_is_found_wherever_it_stands(text: str, is_young: bool) -> None:
    long = "中" * 40_000
    assert with_young_characters(["ascii", text, long + text, text + long]) == ([1, 2, 3] if is_young else [])


def test_the_text_that_begins_or_ends_with_a_young_character_is_told_and_not_its_neighbour() -> None:
    young = "\u1ac4"
    for number, text in enumerate((f"{young}中", f"中{young}", young)):
        assert with_young_characters(["中文", "中", text, "", "中", "a"]) == [2], number


def test_nothing_is_young_that_is_not_looked_up() -> None:
    assert not young_characters()[:FIRST].any()


@pytest.mark.parametrize("name", [name for name in FAST if name != OWN])
def test_the_reference_takes_what_a_program_with_tables_of_its_own_may_know_otherwise(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    tokenizer = train_tokenizer(texts, "bpe", 600, tmp_path_factory.mktemp("young") / "bpe").tokenizer.to_str()
    fast, reference = build_encoder(EncodeOptions(encoder=name), tokenizer), ReferenceEncoder(tokenizer)
    assert isinstance(fast, GuardedEncoder)
    young = [chr(code) for code in np.flatnonzero(young_characters()[:0x34000])[::7]]
    mixed = [f"{texts[i % len(texts)]} {young[i]}'s a{young[i]}1" if i % 3 else texts[i] for i in range(100)]
    for batch in (mixed, [f"{character}'s" for character in young], texts, []):
        one, other = fast.encode(batch), reference.encode(batch)
        assert one.ids_N.tolist() == other.ids_N.tolist()
        assert one.lengths_D.tolist() == other.lengths_D.tolist()
