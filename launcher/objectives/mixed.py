"""Several objectives in one run: which of them makes a sample is drawn by weight.

Shapes: B samples, S tokens of a sequence, T tokens of a decoder's sequence, P parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from launcher.errors import ObjectiveError
from launcher.objectives import noise
from launcher.objectives.base import IGNORE_INDEX, Batch, Objective, Rows, no_rows, some_rows

_PART_LABEL = 0x70617274  # "part"
PART_IDS = "part_ids"
"""Name of the array that tells which part made a sample, int64 [B]; no argument of a model."""
FILLS = {
    "labels": IGNORE_INDEX,
    "attention_mask": 0,
    "segment_ids": -1,
    "decoder_segment_ids": -1,
}
"""What stands behind the end of a row in each array; in the others, the padding token."""


@dataclass(frozen=True)
class ObjectiveMixture:
    """Each sample is made by one of the parts, drawn by weight from seed and position.

    All parts read windows of one length and stride, so that each token is in as many samples as it would be with any of
    them alone. Their arrays are padded to common widths.

    Raises:
        ObjectiveError: There is no part, a weight is not above 0, or the parts read windows of several lengths.

    Source: mixing by sample is that of UL2, Tay et al. 2022 (arXiv:2205.05131).
    """

    parts: tuple[Objective, ...]
    """P objectives for one kind of model."""
    weights: tuple[float, ...]
    """How often each of them makes a sample, relative to the others'."""
    seed: int
    """Chooses the part of every position."""

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.weights) or min(self.weights) <= 0.0:
            raise ObjectiveError(
                f"{len(self.parts)} objectives cannot be mixed with weights {list(self.weights)}",
                "objective.parts",
                "give each part a weight above 0",
            )
        windows = {(part.window_length, part.window_stride, part.fill_id) for part in self.parts}
        if len(windows) > 1:
            told = ", ".join(f"{length} every {stride}" for length, stride, _ in sorted(windows))
            raise ObjectiveError(
                f"the parts of a mixture read one kind of window, not {told} tokens",
                "objective.parts",
                "mix objectives for one kind of model",
            )

    @property
    def window_length(self) -> int:
        """That of every part."""
        return self.parts[0].window_length

    @property
    def window_stride(self) -> int:
        """That of every part."""
        return self.parts[0].window_stride

    @property
    def fill_id(self) -> int:
        """That of every part."""
        return self.parts[0].fill_id

    @property
    def needs_words(self) -> bool:
        """Where any part does."""
        return any(part.needs_words for part in self.parts)

    def parts_at(self, positions_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which part makes the sample at each position, int64 [B]."""
        bits_B = noise.draws(noise.sample_keys(self.seed, _PART_LABEL, positions_B), 1)[:, 0]
        drawn_B = (bits_B >> np.uint64(11)).astype(np.float64) / 2.0**53
        upto = np.cumsum(self.weights)
        return np.searchsorted(upto[:-1] / upto[-1], drawn_B, side="right").astype(np.int64)

    def batch(self, rows: Rows) -> Batch:
        """See `Objective.batch`; `part_ids` [B] besides, which is no argument of a model."""
        part_ids_B = self.parts_at(rows.positions_B)
        batch: Batch = {}
        for number, part in enumerate(self.parts):
            rows_G = np.flatnonzero(part_ids_B == number)
            for name, made in part.batch(some_rows(rows, rows_G)).items():
                if name not in batch:
                    shape = (len(part_ids_B), self._widths[name])
                    batch[name] = np.full(shape, FILLS.get(name, self.fill_id), dtype=np.int64)
                batch[name][rows_G, : made.shape[1]] = made
        return {**batch, PART_IDS: part_ids_B}

    @cached_property
    def _widths(self) -> dict[str, int]:
        """The widest array of each name, whichever parts a batch has."""
        none = no_rows(self.window_length)
        widths: dict[str, int] = {}
        for part in self.parts:
            for name, made in part.batch(none).items():
                widths[name] = max(widths.get(name, 0), made.shape[1])
        return widths
