"""Taking documents out of a run without moving any other sample (takedown, poison).

Shapes: B samples, L tokens of a row, K excluded documents, R rows that hold some, P pieces.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from launcher.errors import RecipeError
from launcher.samples.pieces import Pieces
from launcher.samples.shapes import Samples


class Excluded:
    """The documents of a corpus that a run must not learn from.

    Args:
        samples: The samples of the corpus.
        documents_K: Numbers of documents in its split, in any order.

    Raises:
        RecipeError: There is no such document.
    """

    def __init__(self, samples: Samples, documents_K: NDArray[np.int64]) -> None:
        self._samples = samples
        self._documents_K = np.unique(documents_K).astype(np.int64)
        outside = self._documents_K[(self._documents_K < 0) | (self._documents_K >= samples.stream.num_documents)]
        if outside.size:
            raise RecipeError(
                f"the exclude list names document {outside[0]} of {samples.stream.num_documents}",
                "data.exclude",
                "take the numbers of this split from `pretrain trace`",
            )
        self._touched: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self._documents_K)

    def among(self, documents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these documents are excluded; bool, of the same shape."""
        if not len(self):
            return np.zeros(documents.shape, dtype=np.bool_)
        places = np.minimum(np.searchsorted(self._documents_K, documents), len(self._documents_K) - 1)
        found: NDArray[np.bool_] = self._documents_K[places] == documents
        return found

    def rows_with_any(self, sample_ids_B: NDArray[np.int64]) -> NDArray[np.intp]:
        """The rows that hold tokens of an excluded document, ascending; looked up, not computed from the rows.

        The first call finds the samples of every excluded document.
        """
        if not len(self):
            return np.empty(0, dtype=np.intp)
        if self._touched is None:
            self._touched = self._samples.samples_of(self._documents_K)
        if not self._touched.size:
            return np.empty(0, dtype=np.intp)
        places_B = np.minimum(np.searchsorted(self._touched, sample_ids_B), len(self._touched) - 1)
        return np.flatnonzero(self._touched[places_B] == sample_ids_B)

    def hide(self, pieces: Pieces, tokens_BL: NDArray[np.int32], rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Put fill in place of the tokens of excluded documents.

        Args:
            pieces: Of the R rows that hold some.
            tokens_BL: The batch, changed in place.
            rows: The number of each of these rows in the batch, [R].

        Returns:
            Which tokens were hidden, bool [R, L].
        """
        hidden = pieces.mark(self.among(pieces.documents_P), (len(rows), tokens_BL.shape[1]))
        tokens_BL[rows] = np.where(hidden, self._samples.fill, tokens_BL[rows])
        return hidden
