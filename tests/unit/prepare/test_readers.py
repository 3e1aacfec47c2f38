"""Reading text: every layout gives the same records, however it is cut, and what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from reading import RECORDS, as_zstd, read, readers, texts, write_dictionary, write_stream

from launcher.errors import CorpusError, UsageError
from launcher.prepare import lines
from launcher.prepare.filters import FilterOptions, Filters
from launcher.prepare.readers import ReadOptions, SegmentReader
from launcher.prepare.sources import Segment, SourceFile, cut, find_sources

JSONL = "\n".join(json.dumps(record) for record in RECORDS)
ARRAY = json.dumps(RECORDS, indent=2, ensure_ascii=False)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        pytest.param("x.jsonl", JSONL, id="JSONL, the last line without its end"),
        pytest.param("any.name", JSONL + "\n", id="a name that says nothing"),
        pytest.param("x.jsonl", JSONL.replace("\n", "\n \n\n") + "\n\n", id="blank lines between"),
        pytest.param("x.jsonl", JSONL.replace("\n", "\r\n"), id="the line ends of Windows"),
        pytest.param("x.jsonl", "\ufeff" + JSONL, id="JSONL behind a byte order mark"),
        pytest.param("x.json", json.dumps(RECORDS), id="an array on one line"),
        pytest.param("x.jsonl", "\n " + ARRAY + "\n\n", id="a pretty-printed array"),
        pytest.param("x.json", "\ufeff" + ARRAY, id="an array behind a byte order mark"),
        pytest.param("x.jsonl.gz", gzip.compress(JSONL.encode()), id="gzip"),
        pytest.param(
            "x.jsonl.gz", gzip.compress(JSONL[:40].encode()) + gzip.compress(JSONL[40:].encode()), id="gzip, twice"
        ),
        pytest.param("x.json.gz", gzip.compress(b"\xef\xbb\xbf" + ARRAY.encode()), id="an array inside gzip"),
        pytest.param("x.jsonl.zst", as_zstd(JSONL.encode()), id="zstd"),
        pytest.param("x.json.zst", as_zstd(ARRAY.encode()), id="an array inside zstd"),
        pytest.param("x.jsonl.zst", as_zstd(JSONL[:40].encode()) + as_zstd(JSONL[40:].encode()), id="zstd, twice"),
        pytest.param("x.jsonl.xz", lzma.compress(JSONL.encode()), id="xz"),
        pytest.param("x.json.xz", lzma.compress(ARRAY.encode()), id="an array inside xz"),
        pytest.param(
            "x.jsonl.xz",
            lzma.compress(JSONL[:40].encode()) + bytes(8) + lzma.compress(JSONL[40:].encode()) + bytes(4),
            id="xz, twice, padded",
        ),
    ],
)
def test_every_layout_of_json_gives_the_same_records(tmp_path: Path, name: str, raw: str | bytes) -> None:
    path = tmp_path / name
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    assert [record.fields for record in read(path)] == RECORDS


@pytest.mark.parametrize(
    ("txt", "raw", "expected"),
    [
        pytest.param("file", "a\nb\n\nc\n", [(1, "a\nb\n\nc\n")], id="the file"),
        pytest.param("file", "\ufeffa\r\nb", [(1, "a\nb")], id="the file, from Windows"),
        pytest.param("blank", "\n\na\nb\n \nc", [(1, "a\nb"), (2, "c")], id="between blank lines"),
        pytest.param("blank", "a\r\n\r\nb\r\n", [(1, "a"), (2, "b")], id="between blank lines, from Windows"),
        pytest.param("line", "a\n\nb\r\nc", [(1, "a"), (3, "b"), (4, "c")], id="lines, counted as an editor does"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_a_document_of_a_text_is_what_is_asked_for(
    tmp_path: Path, txt: Any, raw: str, expected: list[tuple[int, str]], suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(raw.encode()) if suffix.endswith("gz") else raw.encode())
    options = ReadOptions(text_field="body", txt=txt)
    assert read(path, options) == [(number, {"body": text}) for number, text in expected]


def test_a_document_of_a_text_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no 'lines'[\s\S]*did you mean 'line'"):
        ReadOptions(txt="lines")  # type: ignore[arg-type]


LINES = st.lists(st.one_of(st.just(""), st.just(" "), st.text(max_size=5).map(json.dumps)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(lines_=LINES, end=st.sampled_from(["\n", "\r\n"]), at_end=st.booleans(), part_bytes=st.integers(1, 40))
def test_lines_are_the_same_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, lines_: list[str], end: str, at_end: bool, part_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_bytes((end.join(lines_) + (end if at_end else "")).encode())
    expected = [(number, json.loads(line)) for number, line in enumerate(lines_, start=1) if line.strip()]
    assert read(path, part_bytes=part_bytes) == expected
    # A build numbers its documents by the rows of the segments before; they must add up.
    sources, base, told = find_sources([str(path)]), 0, []
    for reader in readers(sources, ReadOptions(), part_bytes):
        with reader:
            told += [(base + record.number, record.fields) for record in reader]
        base += reader.num_rows
    assert told == expected


def test_lines_longer_than_a_block_and_blocks_without_a_line_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "READ_BYTES", 7)
    path = tmp_path / "x.jsonl"
    path.write_text("\ufeff" + "\n".join(json.dumps({"completion": "a" * size}) for size in (0, 3, 50, 1)))
    assert [len(text) for text in texts(read(path))] == [0, 3, 50, 1]
    assert [len(text) for text in texts(read(path, part_bytes=9))] == [0, 3, 50, 1]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        pytest.param('{"completion": "a\\ud800b"}', "a?b", id="half a surrogate pair becomes a question mark"),
        pytest.param('{"completion": "a", "score": NaN}', "a", id="what Python writes for no number"),
    ],
)
def test_what_pythons_json_writes_is_read(tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n" + line)
    assert texts(read(tmp_path / "x.jsonl")) == [text, text]


def test_half_a_surrogate_pair_in_an_array_becomes_a_question_mark_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"completion": "a\\ud800b"}, {"completion": "c"}]')
    assert texts(read(path)) == ["a?b", "c"]


def test_numbers_of_an_array_are_those_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1, "b": 1.5, "c": [2e3], "d": {"e": 0.1}, "f": 18446744073709551615}]')
    (record,) = read(path)
    assert record.fields == {"a": 1, "b": 1.5, "c": [2000.0], "d": {"e": 0.1}, "f": 18446744073709551615}
    assert [type(value) for value in record.fields.values()] == [int, float, list, dict, int]
    assert type(record.fields["d"]["e"]) is float


GOOD = b'{"completion": "a"}\n'
UTF16 = '{"completion": "a"}\n'.encode("utf-16")


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        pytest.param("x.jsonl", GOOD + b"{oops}\n", r"line is not JSON[\s\S]*x\.jsonl:2\n[\s\S]*mend", id="no JSON"),
        pytest.param("x.jsonl", b"{\n  " + GOOD, r"line is not JSON[\s\S]*x\.jsonl:1\n", id="one object over lines"),
        pytest.param("x.jsonl", b"[" * 5000, r"not JSON after record 0[\s\S]*x\.jsonl:1", id="nested too deep"),
        pytest.param(
            "x.json",
            b'[{"completion": "a", "b": ' + b"[" * 5000 + b"]" * 5000 + b"}]",
            r"not JSON after record 1: [\s\S]*recursion",
            id="a sound array nested too deep",
        ),
        pytest.param("x.jsonl", b'{"a":' * 5000, r"line is not JSON[\s\S]*x\.jsonl:1", id="a line nested too deep"),
        pytest.param("x.jsonl", b"\n" + b'{"completion": "\xff"}', r"not UTF-8[\s\S]*:2\n[\s\S]*GB18030", id="GBK"),
        pytest.param("x.jsonl", UTF16, r"not UTF-8[\s\S]*x\.jsonl:1\n[\s\S]*iconv -f UTF-16", id="UTF-16"),
        pytest.param("x.json", b'[{"completion": "\xff"}]', r"not JSON[\s\S]*x\.json:1", id="an array, no UTF-8"),
        pytest.param(
            "x.json", b'[{"completion": 1}, {"comp', r"after record 1[\s\S]*x\.json:2\n", id="an array cut off"
        ),
        pytest.param("x.json", b"[1] [2]", r"after record 1: parse error[\s\S]*x\.json:2\n", id="an array and more"),
        pytest.param("x.jsonl.gz", gzip.compress(GOOD * 999)[:-9], r"damaged or cut off[\s\S]*x\.jsonl\.gz", id="gzip"),
        pytest.param("x.jsonl.zst", as_zstd(GOOD * 999)[:-9], r"damaged or cut off[\s\S]*\.zst", id="zstd cut off"),
        pytest.param("x.jsonl.xz", lzma.compress(GOOD * 999)[:-9], r"damaged or cut off[\s\S]*\.xz", id="xz cut off"),
        pytest.param(
            "x.jsonl.xz",
            lzma.compress(GOOD) + b"\xfc" + lzma.compress(GOOD)[1:],
            r"damaged or cut off[\s\S]*\.xz",
            id="xz, a flipped bit in the head of its second stream",
        ),
        pytest.param(
            "x.json.gz",
            gzip.compress(b"[" + GOOD + b"," * 99)[:-5] + b"x" * 9,
            r"damaged or cut off[\s\S]*x\.json\.gz|not JSON after record 1[\s\S]*x\.json\.gz:2",
            id="a damaged array inside gzip",
        ),
        pytest.param("x.txt", "第一条".encode("gb18030"), r"not UTF-8[\s\S]*x\.txt:1\n[\s\S]*iconv", id="text in GBK"),
        pytest.param("x.txt", "第一条".encode("utf-16"), r"not UTF-8[\s\S]*iconv -f UTF-16", id="text in UTF-16"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(CorpusError, match=message):
        read(path)


def test_an_error_names_the_line_of_the_file_not_of_the_segment(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD * 50 + b"\n\n" + b"oops\n" + GOOD * 50)
    with pytest.raises(CorpusError, match=r"x\.jsonl:53\n"):
        read(path, part_bytes=100)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.txt", "x.jsonl.gz", "x.parquet", "x.arrow"])
def test_a_file_that_vanishes_is_named(tmp_path: Path, name: str) -> None:
    kinds = {".json": "array", ".txt": "text", ".parquet": "parquet", ".arrow": "arrow"}
    path = tmp_path / name
    source = SourceFile(str(path), kinds.get(path.suffix, "lines"), None, 9, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match=r"cannot be read: No such file[\s\S]*where: .*x\."):
        list(SegmentReader(source, Segment(0, 0, 1), ReadOptions()))


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD * 10)
    reader = next(readers(find_sources([str(path)]), ReadOptions()))
    path.write_bytes(GOOD * 9)
    with pytest.raises(CorpusError, match=r"180 bytes long, and was 200[\s\S]*x\.jsonl[\s\S]*let nothing write"):
        list(reader)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param("text", r"a string, not an object[\s\S]*x\.jsonl:3\n", id="no object"),
        pytest.param({"completions": "a"}, r"did you mean 'completions'", id="a typo"),
    ],
)
def test_a_record_without_text_is_named_with_its_line(tmp_path: Path, fields: Any, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b"\n" + json.dumps(fields).encode())
    (reader,) = readers(find_sources([str(path)]), ReadOptions())
    filters = Filters(FilterOptions(), "completion", Counter())
    _, record = reader
    with pytest.raises(CorpusError, match=message):
        filters.accept(record.fields, lambda: reader.where(record))


EVERY_KIND: list[tuple[str, Callable[[Path], Any]]] = [
    ("x.jsonl", lambda path: path.write_text("\ufeff" + JSONL)),
    ("x.json", lambda path: path.write_text(ARRAY)),
    ("x.jsonl.gz", lambda path: path.write_bytes(gzip.compress(JSONL.encode()))),
    ("x.jsonl.zst", lambda path: path.write_bytes(as_zstd(JSONL.encode()))),
    ("x.jsonl.xz", lambda path: path.write_bytes(lzma.compress(JSONL.encode()))),
    ("x.txt", lambda path: path.write_text("a\nb\n")),
    ("x.parquet", lambda path: parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=1)),
    ("x.arrow", lambda path: write_stream(path, pa.Table.from_pylist(RECORDS))),
    ("y.arrow", lambda path: write_dictionary(path, pa.Table.from_pylist(RECORDS))),
]


@pytest.mark.parametrize("columns", [None, ("completion",)], ids=["all columns", "one column"])
@pytest.mark.parametrize(("name", "write"), EVERY_KIND, ids=[name for name, _ in EVERY_KIND])
def test_a_segment_is_hashed_alike_whether_it_is_read_or_skimmed(
    tmp_path: Path, name: str, write: Callable[[Path], Any], columns: tuple[str, ...] | None
) -> None:
    path, options = tmp_path / name, ReadOptions(columns=columns)
    write(path)
    (source,) = find_sources([str(path)])
    for segment in [segment for part in cut([source], 30) for segment in part]:
        reading, skimming = (SegmentReader(source, segment, options) for _ in range(2))
        assert reading.xxh3 is None  # nothing is told of it before its end
        list(reading)
        skimming.skim()
        assert reading.xxh3 == skimming.xxh3
        assert reading.xxh3 is not None
        assert len(reading.xxh3) == 32


@pytest.mark.parametrize(("name", "write"), EVERY_KIND, ids=[name for name, _ in EVERY_KIND])
def test_progress_is_counted_in_bytes_on_the_disk(tmp_path: Path, name: str, write: Callable[[Path], Any]) -> None:
    path = tmp_path / name
    write(path)
    (source,) = find_sources([str(path)])
    done = 0
    for segment in [segment for part in cut([source], 30) for segment in part]:
        reader = SegmentReader(source, segment, ReadOptions())
        list(reader)
        done += reader.bytes_done
    headers = source.num_bytes if source.num_units is not None else 0  # what is no row group and no record batch
    assert source.num_bytes - headers <= done <= source.num_bytes
    assert done > 0


def test_another_byte_gives_another_hash(tmp_path: Path) -> None:
    path, hashes = tmp_path / "x.jsonl", set()
    for raw in (GOOD, GOOD + b"\n", GOOD + b" ", GOOD.replace(b"a", b"b")):
        path.write_bytes(raw)
        (reader,) = readers(find_sources([str(path)]), ReadOptions())
        list(reader)
        hashes.add(reader.xxh3)
    assert len(hashes) == 4


@pytest.mark.parametrize("column", ["completion", "text.en"], ids=["a plain name", "a name with a dot"])
def test_another_text_of_a_column_gives_another_hash_and_of_another_column_does_not(
    tmp_path: Path, column: str
) -> None:
    path, hashes = tmp_path / "x.parquet", []
    for text, other in (("aaaa", "1"), ("bbbb", "1"), ("bbbb", "2")):
        parquet.write_table(pa.table({column: [text], "text": [other]}), path)
        (reader,) = readers(find_sources([str(path)]), ReadOptions(text_field=column, columns=(column,)))
        assert [record.fields for record in reader] == [{column: text}]
        hashes.append(reader.xxh3)
    assert hashes[0] != hashes[1] == hashes[2]


def test_reading_lines_imports_nothing_that_is_slow_to_import(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD)
    program = """
import sys
from launcher.prepare.readers import ReadOptions, SegmentReader
from launcher.prepare.sources import cut, find_sources
sources = find_sources([sys.argv[1]])
[[segment]] = cut(sources, 100)
assert len(list(SegmentReader(sources[0], segment, ReadOptions()))) == 1
slow = {"torch", "transformers", "datasets", "pyarrow", "pandas", "ijson", "numpy", "deepspeed"}
print(sorted(slow & set(sys.modules)))
"""
    root = Path(__file__).parents[3]
    told = subprocess.run([sys.executable, "-c", program, path], cwd=root, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
