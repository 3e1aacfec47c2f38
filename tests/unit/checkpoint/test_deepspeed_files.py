"""DeepSpeed's files, where they are damaged or out of reach."""

from __future__ import annotations

import errno
import os
import random
import zipfile
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from launcher.checkpoint.deepspeed_files import _load
from launcher.errors import CheckpointError


def test_whatever_the_bytes_of_a_file_are_it_is_read_or_told(tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.pt", tmp_path / "damaged.pt"
    torch.save({"module": {"w": torch.zeros(4)}, "dp_world_size": 2}, whole)
    rng, told = random.Random(0), 0
    with zipfile.ZipFile(whole) as source:
        files = {entry.filename: source.read(entry) for entry in source.infolist()}
    (name,) = [name for name in files if name.endswith("data.pkl")]
    for number in range(300):
        text = bytearray(files[name])
        text[rng.randrange(len(text))] = rng.randrange(256)
        if number % 3 == 0:
            del text[rng.randrange(len(text)) :]
        with zipfile.ZipFile(damaged, "w") as target:
            for file, content in files.items():
                target.writestr(file, bytes(text) if file == name else content)
        try:
            _load(damaged)
        except CheckpointError:
            told += 1
    assert told > 200


def test_what_a_refused_file_asks_for_is_named(tmp_path: Path) -> None:
    torch.save({"module": Fraction(1, 2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"it asks for fractions\.Fraction, which is not on the list"):
        _load(tmp_path / "a.pt")


def test_a_file_system_that_is_gone_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(torch, "load", gone)
    with pytest.raises(OSError, match="Stale file handle"):  # the command line ends with 75
        _load(tmp_path / "a.pt")
