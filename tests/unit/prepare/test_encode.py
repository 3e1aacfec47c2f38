"""Tokenizing in worker processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

KILLED_IN_THE_MIDDLE = """
import itertools, os, signal, sys
from pathlib import Path
from launcher.prepare.encode import encode_batches

if __name__ == "__main__":
    batches = itertools.repeat(["law"])
    for number, _ in enumerate(encode_batches(batches, Path(sys.argv[1]).read_text(encoding="utf-8"), 2)):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path, tokenizer_folder: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED_IN_THE_MIDDLE)
    # The workers hold the other end of the pipe: this returns when the last of them is gone.
    ended = subprocess.run(
        [sys.executable, str(script), str(tokenizer_folder / "tokenizer.json")], stdout=subprocess.PIPE, timeout=60
    )
    assert ended.returncode == -signal.SIGKILL
