from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that CUDA sees, and pytest -m gpu: other tests hide it")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the tiny corpus."""
    return tiny.make_shards(tmp_path_factory.mktemp("tiny"))
