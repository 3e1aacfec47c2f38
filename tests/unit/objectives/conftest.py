"""A tokenizer's special tokens, and rows of text for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from launcher.shards.manifest import SpecialTokens

NUM_SENTINELS = 100
VOCAB_SIZE = 1000


@pytest.fixture(scope="session")
def special() -> SpecialTokens:
    """Ids 0 to 6 and a hundred sentinels at the end of a vocabulary of 1,000, the first one last, as T5 has them."""
    return SpecialTokens(
        pad=0,
        unk=1,
        cls=2,
        sep=3,
        mask=4,
        bos=5,
        eos=6,
        sentinels=tuple(range(VOCAB_SIZE - 1, VOCAB_SIZE - 1 - NUM_SENTINELS, -1)),
        all_ids=(*range(7), *range(VOCAB_SIZE - NUM_SENTINELS, VOCAB_SIZE)),
        document_end=3,
    )


@pytest.fixture(scope="session")
def text_rows() -> Callable[[int, int], NDArray[np.int32]]:
    """Makes rows of ordinary tokens, ids 10 to 899."""

    def rows(num_rows: int, num_tokens: int) -> NDArray[np.int32]:
        drawn = np.random.default_rng(num_rows * 10_007 + num_tokens).integers(10, 900, (num_rows, num_tokens))
        return drawn.astype(np.int32)

    return rows
