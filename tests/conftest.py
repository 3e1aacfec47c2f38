"""What holds for all tests."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# A deadline is a timed assertion: on a busy machine it fails for no fault of the code.
settings.register_profile("undisturbed", deadline=None)
settings.load_profile("undisturbed")


def pytest_configure(config: pytest.Config) -> None:
    """Only `-m gpu` sees GPUs: the others are the same on every machine, and two ranks cannot share a machine's one."""
    if config.option.markexpr != "gpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    # A shell starts what it puts in the background with SIGINT ignored, and so would everything started here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """One GPU is enough for every test: ranks share it."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that CUDA sees, and pytest -m gpu: other tests hide them")
