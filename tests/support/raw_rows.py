"""Rows of raw tokens, as the data plane hands them to an objective."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RawRows:
    """What an objective asks of its rows."""

    tokens_BL: NDArray[np.int32]
    num_tokens_B: NDArray[np.int64]
    positions_B: NDArray[np.int64]
    hidden_BL: NDArray[np.bool_] | None = None
    continues_BL: NDArray[np.bool_] | None = None
    segments_BL: NDArray[np.int32] | None = None
    pair_cuts_B: NDArray[np.int64] | None = None
    pair_labels_B: NDArray[np.int64] | None = None
