"""Reading text: JSONL and JSON arrays give the same documents, and what cannot be read is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from launcher.errors import CorpusError
from launcher.prepare.documents import find_files, read_documents
from launcher.prepare.split import is_held_out

RECORDS = [{"completion": "一"}, {"completion": "  "}, {"completion": None}, {"completion": "二\u2028三"}]


def read(path: Path) -> tuple[list[str], Counter[str]]:
    counts: Counter[str] = Counter()
    return [document.text for document in read_documents([path], "completion", counts)], counts


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("\n".join(json.dumps(record) for record in RECORDS), id="JSONL"),
        pytest.param("\n\n".join(json.dumps(record) for record in RECORDS), id="blank lines between"),
        pytest.param(json.dumps(RECORDS), id="an array on one line"),
        pytest.param("\n " + json.dumps(RECORDS, indent=2, ensure_ascii=False), id="a pretty-printed array"),
        pytest.param("\ufeff" + json.dumps(RECORDS, indent=2), id="a byte order mark"),
    ],
)
def test_every_layout_gives_the_same_documents(tmp_path: Path, raw: str) -> None:
    path = tmp_path / "any.name"
    path.write_text(raw, encoding="utf-8")
    assert read(path) == (["一", "二\u2028三"], Counter({"read": 4, "kept": 2, "empty": 1, "not_text": 1}))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b'{"completion": "a"}\n{oops}\n', r"not JSON[\s\S]*x\.jsonl:2", id="a line that is not JSON"),
        pytest.param(b'{"completion": "\xff"}\n', r"not JSON[\s\S]*x\.jsonl:1", id="not UTF-8"),
        pytest.param(b'[{"completion": "\xff"}]', r"not JSON[\s\S]*x\.jsonl:1", id="an array that is not UTF-8"),
        pytest.param(b'[{"completion": "a"}, {"comp', r"after record 1[\s\S]*x\.jsonl:2", id="an array cut off"),
        pytest.param(b'"text"\n', r"the record is a string, not an object[\s\S]*x\.jsonl:1", id="not an object"),
        pytest.param(b'{"compl\x65tions": "a"}', r"no field 'completion'[\s\S]*did you mean 'completions'", id="typo"),
        pytest.param(b'{"body": "a"}', r"no field 'completion'[\s\S]*use one of: body", id="another field"),
        pytest.param(b"{}", r"no field 'completion'[\s\S]*delete the empty record", id="an empty record"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(raw)
    with pytest.raises(CorpusError, match=message):
        read(path)


def test_half_a_surrogate_pair_becomes_a_question_mark_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"completion": "a\\ud800b"}, {"completion": "c"}]')
    assert read(path)[0] == ["a?b", "c"]


def test_files_folders_and_globs_are_found_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "c.txt"):
        (tmp_path / name).write_text("")
    found = find_files([str(tmp_path), str(tmp_path / "a.json"), str(tmp_path / "*.txt")])
    assert [path.name for path in found] == ["a.json", "b.jsonl", "c.txt"]


@pytest.mark.parametrize("word", ["nothing.jsonl", "*.nothing", "empty"])
def test_a_corpus_that_is_not_there_is_refused(tmp_path: Path, word: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"(no such file|folder holds no)[\s\S]*fix:"):
        find_files([str(tmp_path / word)])


def test_about_the_share_asked_for_is_held_out() -> None:
    held = sum(is_held_out(str(number), 0.1) for number in range(5000))
    assert 430 < held < 570
    assert not is_held_out("anything", 0.0)
