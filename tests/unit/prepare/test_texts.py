"""Texts to train a tokenizer on: all of a small corpus, a sample from all over a large one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from launcher.errors import CorpusError
from launcher.prepare.texts import sample_texts


def write_lines(path: Path, first: int, count: int) -> Path:
    lines = [json.dumps({"completion": f"{number:07d} text"}) + "\n" for number in range(first, first + count)]
    raw = "".join(lines).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def numbers(corpus: list[Path], num_bytes: int) -> list[int]:
    return [int(text[:7]) for text in sample_texts([str(path) for path in corpus], num_bytes)]


def test_of_a_small_corpus_all_is_taken(tmp_path: Path) -> None:
    corpus = [write_lines(tmp_path / "a.jsonl", 0, 500), write_lines(tmp_path / "b.jsonl", 500, 3)]
    assert numbers(corpus, 10**6) == list(range(503))


def test_of_a_large_one_about_as_much_as_asked_for_comes_from_all_over_it_and_always_the_same(tmp_path: Path) -> None:
    corpus = [write_lines(tmp_path / f"{n}.jsonl", 10_000 * n, 10_000) for n in range(3)]
    taken = numbers(corpus, 24_000)  # 12 bytes each
    assert 1800 <= len(taken) <= 2200
    assert taken == sorted(taken)
    tenths = [sum(3000 * n <= number < 3000 * (n + 1) for number in taken) for n in range(10)]
    assert min(tenths) > 100
    assert numbers(corpus, 24_000) == taken


def test_what_is_compressed_may_be_larger_than_it_looks(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl.gz", 0, 20_000)
    assert path.stat().st_size < 100_000
    assert numbers([path], 100_000) == list(range(8334))


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", 0, 10)
    path.write_text(path.read_text() + "{")
    with pytest.raises(CorpusError, match=r"a\.jsonl:11"):
        numbers([path], 10**6)
