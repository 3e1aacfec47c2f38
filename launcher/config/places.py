"""Where recipes and DeepSpeed configurations lie: beside the package, in the checkout it is used from."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def shipped(kind: str) -> Path:
    """The folder of shipped `recipes` or `ds_configs`."""
    return ROOT / kind


def find(kind: str, name_or_path: str, suffix: str) -> Path | None:
    """The file that `name_or_path` means: a path that exists, or the name of a shipped file with or without suffix."""
    path = Path(name_or_path)
    if _may_be_a_file(path):
        return path
    if len(path.parts) == 1:
        for candidate in (shipped(kind) / name_or_path, shipped(kind) / f"{name_or_path}{suffix}"):
            if candidate.is_file():
                return candidate
    return None


def _may_be_a_file(path: Path) -> bool:
    """Whether it is one, or cannot be looked at for good: then whoever reads it tells why."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP):
            return True
        raise


def names(kind: str, suffix: str) -> list[str]:
    """The names of the shipped files of a kind, without suffix, sorted."""
    return sorted(path.stem for path in shipped(kind).glob(f"*{suffix}"))
