"""A disk of a few megabytes, to be filled."""

from __future__ import annotations

import subprocess
from pathlib import Path

from launcher.drill.life import DrillError

SIZE = "8m"
FILLER = "filler"


class SmallDisk:
    """A tmpfs in a folder; a context manager. Needs root."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def __enter__(self) -> SmallDisk:
        self.path.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(self.path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DrillError(f"no small disk could be mounted: {done.stderr.strip()}", str(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)

    def fill(self) -> None:
        """Leave room for nothing."""
        try:
            with (self.path / FILLER).open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        except OSError:
            pass

    def empty(self) -> None:
        """Make room again."""
        (self.path / FILLER).unlink()
