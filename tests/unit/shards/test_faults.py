from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from launcher.shards.faults import is_damage


@pytest.mark.parametrize(
    ("place", "damaged"),
    [
        (None, True),
        (errno.ENOSPC, True),  # full, but there: a bad sector of the newest checkpoint must not wait for room
        (errno.EDQUOT, True),
        (errno.EACCES, True),
        (errno.EIO, False),
        (errno.ESTALE, False),
    ],
)
def test_a_file_that_cannot_be_read_is_lost_only_where_its_place_answers(
    place: int | None, damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place is not None:

        def refuse(**_: object) -> NoReturn:
            raise OSError(place, "no")

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert is_damage(OSError(errno.EIO, "bad"), tmp_path) is damaged
