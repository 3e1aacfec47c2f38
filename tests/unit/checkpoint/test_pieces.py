"""Columns of matrices that ranks shared, read as any later run wants them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from launcher.checkpoint import folder as layout
from launcher.checkpoint.load import CheckpointReader
from launcher.checkpoint.part import index_of
from launcher.checkpoint.pieces import Columns, blocks_of
from launcher.errors import CheckpointError, DamagedCheckpointError, RequeueError

ROWS, ALL = 5, 12
WHOLE = torch.arange(ROWS * ALL, dtype=torch.float32).view(ROWS, ALL)


def range_of(columns: Columns | None, start: int, numel: int) -> torch.Tensor:
    part = WHOLE if columns is None else WHOLE[:, columns.first : columns.first + columns.width]
    return part.reshape(-1)[start : start + numel].clone()


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 9), st.integers(1, 7))
def test_a_range_of_columns_is_at_most_three_rectangles_that_hold_it_in_order(
    start: int, numel: int, first: int, width: int
) -> None:
    blocks = list(blocks_of(start, numel, Columns(first, width)))
    assert len(blocks) <= 3
    places = [
        (row, column)
        for block in blocks
        for row in range(block.first_row, block.first_row + block.num_rows)
        for column in range(block.first_column, block.first_column + block.num_columns)
    ]
    assert places == [(value // width, first + value % width) for value in range(start, start + numel)]
    assert [block.offset for block in blocks] == [
        sum(block.num_rows * block.num_columns for block in blocks[:number]) for number in range(len(blocks))
    ]


@pytest.mark.parametrize("cut", [(12,), (6, 6), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("split", [60, 7, 13], ids="flat pieces of {}".format)
def test_any_range_is_read_whoever_shared_the_matrix(cut: tuple[int, ...], split: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, cut, split)
    with CheckpointReader(tmp_path) as reader:
        assert torch.equal(reader.read_whole("w"), WHOLE)
        for columns in (None, Columns(0, 6), Columns(6, 6), Columns(3, 3), Columns(8, 4)):
            numel = ROWS * (ALL if columns is None else columns.width)
            for start in range(0, numel, 3):
                for wanted in (1, 4, 11, numel):
                    length = min(wanted, numel - start)
                    values = reader.read("w", "master", start, length, columns)
                    assert torch.equal(values, range_of(columns, start, length)), (columns, start, length)


def test_columns_that_are_not_there_are_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, (6, 6), 60, leave_out=1)
    with CheckpointReader(tmp_path) as reader, pytest.raises(CheckpointError, match="30 of 60 values from 0 on"):
        reader.read_whole("w")


def test_who_knows_no_columns_reads_no_index_that_has_some(tmp_path: Path) -> None:
    for cut, version in (((12,), 1), ((6, 6), 2)):
        folder = tmp_path / str(version)
        folder.mkdir()
        write_checkpoint(folder, cut, 60)
        assert json.loads((folder / "rank-00000.json").read_text())["format_version"] == version
    index = tmp_path / "2" / "rank-00000.json"
    fields = json.loads(index.read_text())
    index.write_text(json.dumps(fields | {"format_version": 1}))
    CheckpointReader(tmp_path / "2")  # so columns were written before they had a version
    index.write_text(json.dumps(fields | {"format_version": 3}))
    with pytest.raises(CheckpointError, match="the checkpoint has format 3, this program reads 1 and 2"):
        CheckpointReader(tmp_path / "2")


def test_tensors_that_cannot_be_reached_are_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, (12,), 60)
    with CheckpointReader(tmp_path) as reader, monkeypatch.context() as patched:

        def away(*_: object, **__: object) -> None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        patched.setattr(Path, "open", away)
        with pytest.raises(RequeueError, match="the file cannot be read: Stale file handle"):
            reader.read_whole("w")
    (tmp_path / "rank-00000.safetensors").unlink()
    with CheckpointReader(tmp_path) as reader, pytest.raises(DamagedCheckpointError, match="is missing"):
        reader.read_whole("w")
    (tmp_path / "rank-00000.safetensors").write_bytes(b"no tensors")
    with CheckpointReader(tmp_path) as reader, pytest.raises(DamagedCheckpointError, match="the file cannot be read"):
        reader.read_whole("w")


def write_checkpoint(folder: Path, cut: tuple[int, ...], split: int, leave_out: int = 0) -> None:
    """A checkpoint of one matrix: as many groups of columns as there are numbers, each in ranges over ranks."""
    pieces = []
    for number, width in enumerate(cut):
        columns = None if len(cut) == 1 else Columns(sum(cut[:number]), width)
        for start in range(0, ROWS * width, split):
            pieces.append((columns, start, min(split, ROWS * width - start)))
    names = ["state.json"]
    (folder / "state.json").write_text(json.dumps({"format_version": layout.FORMAT_VERSION, "step": 1}))
    for rank, (columns, start, numel) in enumerate(pieces[: len(pieces) - leave_out]):
        stem = f"rank-{rank:05d}"
        entry = {"name": "w", "shape": [ROWS, ALL], "start": start, "numel": numel, "stored": "w"}
        entry |= {} if columns is None else {"columns": columns}
        (folder / f"{stem}.json").write_text(index_of([entry], {}))
        save_file({"w|master": range_of(columns, start, numel)}, folder / f"{stem}.safetensors")
        names += [f"{stem}.json", f"{stem}.safetensors"]
    files = [{"name": name, "bytes": 0, "xxh3": ""} for name in names]
    manifest = {"format_version": layout.FORMAT_VERSION, "step": 1, "files": files}
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
