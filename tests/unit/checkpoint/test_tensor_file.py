"""What is written from an aligned buffer is a safetensors file, with the checksum of its bytes."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launcher.checkpoint import tensor_file
from launcher.checkpoint.folder import checksum
from launcher.checkpoint.tensor_file import ALIGNMENT, DurableFile, Layout, StreamedFile, aligned_buffer

TENSORS = {
    "words": torch.arange(7, dtype=torch.int64),
    "法": torch.randn(3001, generator=torch.Generator().manual_seed(1)),
    "matrix": torch.randn(5, 400, generator=torch.Generator().manual_seed(2)),
    "half": torch.arange(3, dtype=torch.bfloat16),
    "state": torch.arange(5, dtype=torch.uint8),
}


def described() -> Layout:
    return Layout([(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()])


def write_streamed(path: Path, staging_bytes: int) -> dict[str, Any]:
    with DurableFile(path) as file:
        stream = StreamedFile(file, described(), aligned_buffer(staging_bytes))
        for tensor in TENSORS.values():
            stream.add(tensor)
        return stream.finish()


@pytest.mark.parametrize("staging_bytes", [ALIGNMENT, 3 * ALIGNMENT, 1 << 20])
def test_what_is_streamed_is_read_by_safetensors(staging_bytes: int, tmp_path: Path) -> None:
    entry = write_streamed(tmp_path / "a.safetensors", staging_bytes)
    assert entry == {
        "name": "a.safetensors",
        "bytes": described().num_bytes,
        "xxh3": checksum(tmp_path / "a.safetensors"),
    }
    assert (tmp_path / "a.safetensors").stat().st_size == described().num_bytes
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(read[name], tensor)


def test_what_no_file_system_takes_is_an_error_and_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refuse(*arguments: Any) -> int:
        tries.append(arguments)
        assert len(tries) < 9
        raise OSError(errno.EINVAL, "refused")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OSError, match="refused"):
        write_streamed(tmp_path / "a.safetensors", ALIGNMENT)


def test_one_buffer_of_the_whole_gives_the_same_bytes_as_a_stream(tmp_path: Path) -> None:
    layout = described()
    buffer = aligned_buffer(layout.num_bytes)
    assert buffer.data_ptr() % ALIGNMENT == 0
    raw = [layout.header, *(tensor.view(torch.uint8).numpy().tobytes() for tensor in TENSORS.values())]
    buffer[: layout.num_bytes] = torch.frombuffer(bytearray(b"".join(raw)), dtype=torch.uint8)
    with DurableFile(tmp_path / "whole") as file:
        file.append(buffer, layout.num_bytes)
        entry = file.finish()
    streamed = write_streamed(tmp_path / "streamed", ALIGNMENT)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "streamed").read_bytes()
    assert entry["xxh3"] == streamed["xxh3"]


@pytest.mark.parametrize("refused_at", ["open", "first write", "later write"])
def test_a_file_system_without_direct_writes_gets_ordinary_ones(
    refused_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_open, plain_write = os.open, os.pwrite
    direct: set[int] = set()

    def open_(path: Any, flags: int, mode: int = 0o777) -> int:
        if refused_at == "open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes")
        descriptor = plain_open(path, flags & ~os.O_DIRECT, mode)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        else:
            direct.discard(descriptor)
        return descriptor

    def write(descriptor: int, block: Any, offset: int) -> int:
        if descriptor in direct and (refused_at == "first write" or offset > 0):
            raise OSError(errno.EINVAL, "no direct writes")
        return plain_write(descriptor, block[:100], offset)  # nor whole ones

    monkeypatch.setattr(tensor_file.os, "open", open_)
    monkeypatch.setattr(tensor_file.os, "pwrite", write)
    entry = write_streamed(tmp_path / "a", ALIGNMENT)
    monkeypatch.undo()
    assert entry["xxh3"] == checksum(tmp_path / "a")


def test_another_refusal_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, block: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_file.os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write_streamed(tmp_path / "a", ALIGNMENT)
    with pytest.raises(FileNotFoundError):
        DurableFile(tmp_path / "none" / "a")


@pytest.mark.parametrize(("num_bytes", "num_threads"), [(1, 1), (4097, 2), (tensor_file.BLOCK_BYTES + 5, 3)])
def test_bytes_are_copied_whole_on_any_number_of_threads(num_bytes: int, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8)
        target = aligned_buffer(num_bytes)[:num_bytes]
        tensor_file.copy_bytes(source, target)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(source, target)


def test_a_file_that_can_be_opened_no_second_time_is_an_error_and_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed, plain_open, plain_close = [], [], os.open, os.close

    def open_once(*arguments: Any) -> int:
        if opened:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        opened.append(plain_open(*arguments))
        return opened[0]

    def close(descriptor: int) -> None:
        closed.append(descriptor)  # a second time it would be another thread's file
        plain_close(descriptor)

    def refuse(*_: Any) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", open_once)
        patched.setattr(os, "close", close)
        patched.setattr(os, "pwrite", refuse)
        with pytest.raises(OSError, match="Stale file handle"), DurableFile(tmp_path / "a") as file:
            file.append(aligned_buffer(ALIGNMENT), 1)
    assert closed == opened


def test_a_kernel_without_huge_pages_has_buffers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutHugePages(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(mmap, "mmap", WithoutHugePages)
    assert len(aligned_buffer(ALIGNMENT + 1)) == 2 * ALIGNMENT
