"""Reading parquet, arrow and data sets of the `datasets` library, saved or streamed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash
from pyarrow import parquet
from reading import RECORDS, numbered, read, readers, texts, write_dictionary, write_feather, write_stream

from launcher.errors import CorpusError
from launcher.prepare.readers import ReadOptions, Record
from launcher.prepare.sources import find_sources


@pytest.mark.parametrize("part_bytes", [1, 200, 1 << 40], ids=["every unit for itself", "some together", "whole"])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        pytest.param("x.parquet", lambda path, table: parquet.write_table(table, path, row_group_size=2), id="parquet"),
        pytest.param("x.arrow", write_stream, id="a stream"),
        pytest.param(
            "x.arrow", lambda path, table: write_stream(path, table, compression="zstd"), id="a compressed stream"
        ),
        pytest.param("x.arrow", write_feather, id="an arrow file with an index"),
        pytest.param("x.arrow", write_dictionary, id="values given once and referred to"),
    ],
)
def test_tables_give_the_same_records_however_they_are_cut(
    tmp_path: Path, name: str, write: Callable[[Path, Any], None], part_bytes: int
) -> None:
    path = tmp_path / name
    write(path, pa.Table.from_pylist(RECORDS))
    assert read(path, part_bytes=part_bytes) == list(enumerate(RECORDS, start=1))


def test_a_saved_data_set_is_read_file_by_file_in_its_own_order(tmp_path: Path) -> None:
    for name, stretch in (("z.arrow", slice(0, 3)), ("a.arrow", slice(3, 4))):
        write_stream(tmp_path / name, pa.Table.from_pylist(RECORDS[stretch]))
    state = {"_data_files": [{"filename": "z.arrow"}, {"filename": "a.arrow"}], "_format_type": None}
    (tmp_path / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_info.json").write_text("{}")
    for part_bytes in (1, 1 << 40):
        assert read(tmp_path, part_bytes=part_bytes) == list(enumerate(RECORDS, start=1))


def test_what_the_datasets_library_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(RECORDS).select([3, 1, 0])
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "all")
    assert texts(read(tmp_path / "all")) == ["二\u2028三", "  ", "一"]


def test_a_folder_is_streamed_by_the_datasets_library_where_the_hub_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(f'{{"completion": "{split} {n}"}}\n' for n in range(3)))
    assert texts(read("hub:./")) == ["train 0", "train 1", "train 2"]
    assert read("hub:./@test", ReadOptions(columns=("completion",)))[1] == Record(2, {"completion": "test 1"})
    (reader,) = readers(find_sources(["hub:./"]), ReadOptions())
    assert len(numbered(reader)) == 3
    raw = (tmp_path / "train.jsonl").read_bytes()
    assert (reader.num_rows, reader.bytes_done, reader.xxh3) == (3, len(raw), xxhash.xxh3_128_hexdigest(raw))
    with pytest.raises(
        CorpusError, match=r"there is no split 'dev'[\s\S]*hub:\./@dev[\s\S]*one of (train, test|test, train)"
    ):
        read("hub:./@dev")


def test_the_hub_is_not_reached_where_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CorpusError, match=r"HF_HUB_OFFLINE is set[\s\S]*hub:owner/name[\s\S]*unset it"):
        read("hub:owner/name")


@pytest.mark.parametrize(
    ("name", "write", "flip"),
    [
        pytest.param("x.parquet", parquet.write_table, b"\xff" * 1996, id="parquet"),
        pytest.param(
            "x.parquet",
            partial(parquet.write_table, compression=None, use_dictionary=False, write_page_checksum=True),
            b"T",
            id="a letter of parquet whose pages have checksums",
        ),
        pytest.param(
            "x.arrow", lambda table, path: write_stream(path, table, 5000), b"\xff", id="text that is no UTF-8"
        ),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, name: str, write: Callable[[Any, Path], object], flip: bytes) -> None:
    path = tmp_path / name
    write(pa.table({"completion": [f"text {n}" for n in range(5000)]}), path)
    raw = path.read_bytes()
    place = raw.find(b"text 17") if len(flip) == 1 else 4
    path.write_bytes(raw[:place] + flip + raw[place + len(flip) :])
    with pytest.raises(CorpusError, match=rf"damaged or cut off[\s\S]*{name}"):
        read(path)


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_only_the_columns_asked_for_are_read_and_all_where_one_is_missing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table = pa.Table.from_pylist([{"id": 1, "completion": "a", "more": {"lang": "zh"}}])
    parquet.write_table(table, path) if name == "x.parquet" else write_stream(path, table)
    assert read(path, ReadOptions(columns=("completion",))) == [(1, {"completion": "a"})]
    assert read(path, ReadOptions(columns=("more", "id"))) == [(1, {"more": {"lang": "zh"}, "id": 1})]
    (record,) = read(path, ReadOptions(columns=("completions",)))
    assert list(record.fields) == ["id", "completion", "more"]  # so that the nearest can be offered


def test_reading_tables_imports_neither_torch_nor_the_datasets_library(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "x.parquet")
    write_stream(tmp_path / "x.arrow", pa.Table.from_pylist(RECORDS))
    program = """
import sys
from launcher.prepare.texts import read_texts
assert len(list(read_texts([sys.argv[1]]))) == 4
print(sorted({"torch", "transformers", "datasets", "pandas"} & set(sys.modules)))
"""
    root = Path(__file__).parents[3]
    told = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=root, capture_output=True, text=True, check=True
    )
    assert told.stdout == "[]\n"
