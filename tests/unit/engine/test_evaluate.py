"""A validation is broken off where some rank was asked to stop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from launcher.cluster.signals import StopRequest
from launcher.engine import steps
from launcher.engine.records import EvalBatch
from launcher.engine.steps import BATCHES_BETWEEN_QUESTIONS, StopAsked, evaluate


def test_a_stop_that_another_rank_was_asked_for_ends_a_validation_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, modes = [], []

    def of_two_ranks(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([values, np.full_like(values, 75 if len(taken) >= 20 else 0)])

    def losses(*_: object) -> torch.Tensor:
        taken.append(1)
        return torch.zeros(4)

    monkeypatch.setattr(steps, "gather", of_two_ranks)
    monkeypatch.setattr(steps, "losses", losses)
    engine = SimpleNamespace(device="cpu", eval=lambda: modes.append("eval"), train=lambda: modes.append("train"))
    inputs = {"labels": np.zeros((1, 2), dtype=np.int64)}
    batches = [EvalBatch(corpus=0, inputs=inputs, num_text_targets=2)] * 100
    with pytest.raises(StopAsked) as asked:
        evaluate(engine, batches, {"one": None}, (), StopRequest())
    assert asked.value.code == 75
    assert len(taken) == 2 * BATCHES_BETWEEN_QUESTIONS
    assert modes == ["eval", "train"]
