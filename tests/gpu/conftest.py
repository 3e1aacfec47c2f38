from __future__ import annotations

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the tiny corpus."""
    return tiny.make_shards(tmp_path_factory.mktemp("tiny"))
