"""The file that says that a run is done: `complete.json` in its folder, written after everything else.

An exit code does not say it: DeepSpeed's runner ends with 0 when its node launcher was killed, with the ranks at work.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from launcher.shards.durable import replace_durably

NAME = "complete.json"


def mark_complete(folder: Path, step: int) -> None:
    """Say that the run has its last step, its checkpoint and its export."""
    text = json.dumps({"step": step, "at": datetime.now().astimezone().isoformat(timespec="seconds")})
    replace_durably(folder / NAME, text + "\n")


def unmark(folder: Path) -> None:
    """The run goes on: to more steps."""
    (folder / NAME).unlink(missing_ok=True)


def completed_step(folder: Path) -> int | None:
    """The last step of a run that is done; None for any other."""
    try:
        return int(json.loads((folder / NAME).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
