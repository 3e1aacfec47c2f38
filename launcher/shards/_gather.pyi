"""The compiled part of reading (`_gather.c`): there is nothing but this, and it may be missing (`gather.py`)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def gather(
    out_BL: NDArray[Any],
    windows_B: NDArray[np.int64],
    stride: int,
    row: int,
    starts: NDArray[np.int64],
    files: list[memoryview | None],
    checked: list[bytearray],
    token_bytes: int,
    block_bytes: int,
    /,
) -> int: ...
