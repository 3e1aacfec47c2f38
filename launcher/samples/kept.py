"""Arrays that take a pass over a whole split to work out, kept in a file beside its shards."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def keep(path: Path, fingerprint: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays under names; a reader finds the old file or the new one, never half of one.

    Args:
        path: The file, beside others of its kind.
        fingerprint: Of all that decides the arrays.
        arrays: By name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, fingerprint=np.array(fingerprint), **arrays)
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def find_kept(path: Path, fingerprint: str, names: tuple[str, ...]) -> tuple[NDArray[Any], ...] | None:
    """Read back what `keep` wrote; None where it is missing, damaged or of something else: work it out again."""
    try:
        with np.load(path, allow_pickle=False) as file:  # a zip checks what it holds by its CRC-32
            if str(file["fingerprint"]) != fingerprint:
                return None
            return tuple(file[name] for name in names)
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        return None
