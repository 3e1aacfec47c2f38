"""Words and sentences, told from where tokens stand in the text."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer

from launcher.errors import MissingDependencyError
from launcher.prepare import segmenters
from launcher.prepare.encoders import EncodeOptions, ReferenceEncoder, build_encoder, plain_tokenizer
from launcher.prepare.segmenters import preferred_segmenter
from launcher.prepare.sentences import sentence_lengths, sentence_starts
from launcher.prepare.tokenizer_training import train_tokenizer
from launcher.prepare.words import WordMarker

TEXT = "中华人民共和国的法院。Unbelievable, don't split it's words 3.14 １２３！"


@pytest.fixture(scope="module")
def marker() -> WordMarker:
    return WordMarker(preferred_segmenter())


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Tokenizer:
    folder = tmp_path_factory.mktemp("kinds") / request.param
    size = {"wordpiece": 300, "bpe": 500, "unigram": 220}[request.param]
    return plain_tokenizer(train_tokenizer([*texts, TEXT], request.param, size, folder).tokenizer.to_str())


def groups(text: str, offsets: list[tuple[int, int]], marks: np.ndarray) -> list[str]:
    """The text of each word, from its first token to its last."""
    spans: list[list[int]] = []
    for (start, end), continues in zip(offsets, marks.tolist(), strict=True):
        if continues:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([start, end])
    return [text[start:end].strip() for start, end in spans]


def test_words_are_the_same_whatever_cuts_them(marker: WordMarker, tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode(TEXT, add_special_tokens=False)
    marks = marker.marks(TEXT, np.array(encoding.offsets))
    found = [word for word in groups(TEXT, encoding.offsets, marks) if word]
    assert found[:4] == ["中华人民共和国", "的", "法院", "。"]
    assert found[4:7] == ["Unbelievable", ",", "don't"]
    assert "words" in found
    assert not marks[0]


def test_a_chinese_word_is_the_segmenters_and_not_a_character(marker: WordMarker) -> None:
    text = "人民法院的案件"
    offsets = np.array([(i, i + 1) for i in range(len(text))])
    assert groups(text, offsets.tolist(), marker.marks(text, offsets)) == ["人民法院", "的", "案件"]


@pytest.mark.parametrize(
    ("text", "offsets", "expected", "reason"),
    [
        ("法", [(0, 1), (0, 1), (0, 1)], [False, True, True], "bytes of one character"),
        ("a b", [(0, 1), (1, 3)], [False, False], "a token takes in the space before its word"),
        ("ab", [(0, 1), (1, 2)], [False, True], "letters of a word"),
        ("a,b", [(0, 1), (1, 2), (2, 3)], [False, False, False], "punctuation stands alone"),
        ("--", [(0, 1), (1, 2)], [False, False], "two marks are two words"),
        ("a法", [(0, 1), (1, 2)], [False, False], "scripts do not mix"),
        ("x", [(0, 1)], [False], "a single token"),
        ("", [], [], "no token"),
    ],
)
def test_what_continues_a_word(
    marker: WordMarker, text: str, offsets: list[tuple[int, int]], expected: list[bool], reason: str
) -> None:
    marks = marker.marks(text, np.array(offsets, dtype=np.int64).reshape(-1, 2))
    assert marks.tolist() == expected, reason


def test_without_a_segmenter_the_fix_is_the_command_that_installs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(segmenters, "version", version)
    with pytest.raises(MissingDependencyError, match="pip install rjieba"):
        preferred_segmenter()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("第一句。第二句！第三句？", ["第一句。", "第二句！", "第三句？"]),
        ("他说：“走吧。”然后走了。", ["他说：“走吧。”", "然后走了。"]),
        ("One is here. Two is there. 3 follows.", ["One is here. ", "Two is there. ", "3 follows."]),
        ("Pi is 3.14 and e.g. this.", ["Pi is 3.14 and e.g. this."]),
        ("J. Smith came. Then left.", ["J. Smith came. ", "Then left."]),
        ("line one\nline two\n\nline three", ["line one\n", "line two\n\n", "line three"]),
        ("什么？！真的……吗", ["什么？！", "真的……", "吗"]),
        ("", []),
        ("no end", ["no end"]),
    ],
)
def test_sentences_end_where_punctuation_says(text: str, sentences: list[str]) -> None:
    starts = sentence_starts(text)
    assert [text[a:b] for a, b in pairwise([*starts, len(text)])] == sentences


def test_the_tokens_of_sentences_add_up_and_none_is_empty(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text in [*texts, TEXT, "。。。", " "]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
        lengths = sentence_lengths(text, starts)
        assert lengths.sum() == len(encoding.ids)
        assert (lengths > 0).all()


def test_what_is_told_beside_ids_changes_none(tokenizer: Tokenizer, texts: list[str]) -> None:
    json_text = tokenizer.to_str()
    told = build_encoder(EncodeOptions(segmenter=preferred_segmenter(), sentences=True), json_text).encode([*texts, ""])
    plain = ReferenceEncoder(json_text).encode([*texts, ""])
    assert told.ids_N.tolist() == plain.ids_N.tolist()
    assert told.continues_N is not None
    assert len(told.continues_N) == len(told.ids_N)
    assert told.sentences_D is not None
    assert told.sentence_lengths_Q is not None
    assert told.sentences_D[-1] == 0
    assert told.sentence_lengths_Q.sum() == len(told.ids_N)
