"""The WordPiece cache: ids as `tokenizers` gives them, whatever stands beside what."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from launcher.errors import TokenizerError
from launcher.prepare import wordpiece
from launcher.prepare.encoders import Encoded, FastEncoder, ReferenceEncoder, plain_tokenizer
from launcher.prepare.nasty_texts import nasty_texts
from launcher.prepare.tokenizer_training import train_tokenizer
from launcher.prepare.wordpiece import CachedWordPiece, fits

NORMALIZERS = [
    pytest.param({}, id="as `pretrain tokenizer` makes it: cased"),
    pytest.param({"lowercase": True, "strip_accents": None}, id="uncased, accents fall with the case"),
    pytest.param({"strip_accents": True}, id="cased without accents"),
    pytest.param({"clean_text": False}, id="control characters stay"),
    pytest.param({"handle_chinese_chars": False}, id="Chinese characters make words"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> str:
    folder = tmp_path_factory.mktemp("wordpiece")
    return train_tokenizer(
        [*texts, "the then there running runs é ½ 法院"], "wordpiece", 400, folder
    ).tokenizer.to_str()


def changed(tokenizer_json: str, part: str, fields: dict[str, object]) -> str:
    read = json.loads(tokenizer_json)
    read[part] |= fields
    return json.dumps(read)


def assert_equal(cached: CachedWordPiece, reference: ReferenceEncoder, texts: list[str]) -> None:
    ids_N, lengths_D = cached.encode(texts)
    expected = reference.encode(texts)
    assert lengths_D.tolist() == expected.lengths_D.tolist()
    assert ids_N.tolist() == expected.ids_N.tolist()


@pytest.mark.parametrize("fields", NORMALIZERS)
def test_nasty_texts_alone_in_pairs_and_together(trained: str, texts: list[str], fields: dict[str, object]) -> None:
    made = changed(trained, "normalizer", fields)
    cached, reference = CachedWordPiece(plain_tokenizer(made)), ReferenceEncoder(made)
    nasty = list(nasty_texts(plain_tokenizer(made)))
    for text in nasty:
        assert_equal(cached, reference, [text])
    assert_equal(cached, reference, [one + other for one, other in zip(nasty, [*nasty[1:], nasty[0]], strict=True)])
    assert_equal(cached, reference, nasty + texts)
    assert_equal(cached, reference, [])
    assert_equal(cached, reference, ["", "", ""])


# Letters, marks that join what is before them, signs, blanks of all kinds, controls, ideographs, surrogates left out.
CHARACTERS = st.one_of(
    st.sampled_from(
        "abA1 \t\n\x00\x1c\x85\u2028\u3000.,;-_#[]法院é\u0301\u0338\u302e\u200d≠İßΣς㎏𠀀\U0002f800\U0001f469"
    ),
    st.characters(exclude_categories=("Cs",)),
)


@pytest.mark.parametrize("fields", NORMALIZERS)
def test_any_text_gets_the_ids_of_the_reference(trained: str, fields: dict[str, object]) -> None:
    made = changed(trained, "normalizer", fields)
    cached, reference = CachedWordPiece(plain_tokenizer(made)), ReferenceEncoder(made)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.lists(st.text(CHARACTERS, max_size=40), max_size=6))
    def holds(drawn: list[str]) -> None:
        assert_equal(cached, reference, drawn)

    holds()


def test_what_is_remembered_is_bounded(trained: str, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordpiece, "_MAX_UNITS", 5)
    cached, reference = CachedWordPiece(plain_tokenizer(trained)), ReferenceEncoder(trained)
    for text in texts[:20]:
        assert_equal(cached, reference, [text])
        assert_equal(cached, reference, [f"{text} wörd{len(text)}"])


def test_it_grows_with_the_words(trained: str) -> None:
    cached, reference = CachedWordPiece(plain_tokenizer(trained)), ReferenceEncoder(trained)
    many = [" ".join(f"w{number}" for number in range(first, first + 9_000)) for first in (0, 9_000, 36_000)]
    assert_equal(cached, reference, many)
    assert_equal(cached, reference, many)


def own_token(tokenizer_json: str) -> str:
    fields = json.loads(tokenizer_json)
    fields["added_tokens"].append({**fields["added_tokens"][0], "id": 399, "content": "the law", "special": False})
    return json.dumps(fields)


def test_tokenizers_that_cut_in_another_way_are_refused(trained: str, tmp_path: Path, texts: list[str]) -> None:
    others = [
        (changed(trained, "pre_tokenizer", {"type": "Whitespace"}), "punctuation stays together"),
        (changed(trained, "normalizer", {"type": "NFKC"}), "characters compose across words"),
        (own_token(trained), "an added token with a blank in it"),
        (train_tokenizer(texts, "bpe", 400, tmp_path).tokenizer.to_str(), "another model"),
    ]
    assert fits(plain_tokenizer(trained))
    for made, reason in others:
        assert not fits(plain_tokenizer(made)), reason
        with pytest.raises(TokenizerError, match="does not cut texts as BERT's does"):
            CachedWordPiece(Tokenizer.from_str(made))


def test_half_of_a_surrogate_pair_is_for_the_reference_to_refuse(trained: str) -> None:
    cached = CachedWordPiece(plain_tokenizer(trained))
    with pytest.raises(UnicodeEncodeError):
        cached.encode(["a\ud800b"])
    fast = FastEncoder(lambda: lambda texts: Encoded(*cached.encode(texts)), ReferenceEncoder(trained))
    ids = fast.encode(["a b", "c d"]).ids_N
    assert np.array_equal(ids, ReferenceEncoder(trained).encode(["a b", "c d"]).ids_N)


def test_what_breaks_off_while_it_learns_leaves_nothing_wrong_behind(
    trained: str, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, reference = CachedWordPiece(plain_tokenizer(trained)), ReferenceEncoder(trained)
    learn = cached._learn

    def broken(words: list[str]) -> list[int]:
        if len(words) > 3:
            raise RuntimeError("a panic")
        return learn(words)

    monkeypatch.setattr(cached, "_learn", broken)
    for text in texts[:20]:
        with contextlib.suppress(RuntimeError):
            cached.encode([f"{text} wörd{len(text)}"])
    monkeypatch.setattr(cached, "_learn", learn)
    assert_equal(cached, reference, texts)
