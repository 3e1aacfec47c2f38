"""A mapped file that is cut short ends the process with its name, whoever holds the interpreter's lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cluster.bus_error import mapped_at

PROGRAM = """
import mmap, os, sys
from pathlib import Path
import numpy as np
from launcher.cluster.signals import StopSignals
from launcher.config.guards import GuardsConfig
from launcher.engine.watch import Watch

file = Path(sys.argv[1])
array = np.memmap(file, dtype=np.uint16, mode="r")
folder = file.parent / "run"
with StopSignals() as signals, Watch(GuardsConfig(), folder, 3, signals):
    array.astype(np.int64)
    os.truncate(file, 0)
    {touch}
"""


@pytest.mark.parametrize(
    "touch",
    [
        "array.astype(np.int64)",  # a long loop of numpy's, without the lock
        "bytes(memoryview(array)[:100])",  # a copy that holds it
    ],
)
def test_a_mapped_file_that_is_cut_short_is_named_in_one_line(touch: str, tmp_path: Path) -> None:
    file = tmp_path / "train-00000.bin"
    file.write_bytes(bytes(1 << 20))
    words = [sys.executable, "-c", PROGRAM.format(touch=touch), str(file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75
    (line,) = done.stderr.splitlines()
    assert line.startswith("rank 3 on ")
    assert f" can no longer reach {file}: it was cut short, or its file system is gone or full" in line
    assert line.endswith("the same command goes on from the last checkpoint")


def test_an_address_that_is_of_no_file_has_no_name() -> None:
    assert mapped_at(0) == ""
