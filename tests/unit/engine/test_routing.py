"""The load of experts, window by window, and the one warning of those that get nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from launcher.engine import routing
from launcher.engine.routing import LONG_WHILE_STEPS, ExpertLoad, LayerLoad


class Model:
    """The part of a model's routing that is asked."""

    def __init__(self, **routers: int) -> None:
        self.routers = routers
        self.load: dict[str, list[float]] = {}

    def take_load(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(counts, dtype=torch.float64) for name, counts in self.load.items()}


@pytest.fixture(autouse=True)
def _two_ranks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "gather", lambda values: np.stack([values, values]))


@pytest.mark.parametrize(
    ("counts", "share", "entropy", "dead"),
    [
        ([5, 5, 5, 5], [0.25] * 4, 1.0, []),
        ([10, 10, 0, 0], [0.5, 0.5, 0.0, 0.0], 0.5, [2, 3]),
        ([7, 0, 0, 0], [1.0, 0.0, 0.0, 0.0], 0.0, [1, 2, 3]),
        ([0, 0, 0, 0], [0.0] * 4, 0.0, []),  # a layer that saw no token says nothing of its experts
    ],
)
def test_shares_entropy_and_dead_experts(
    counts: list[float], share: list[float], entropy: float, dead: list[int]
) -> None:
    load = LayerLoad.of(np.array(counts, dtype=np.float64))
    assert (load.share, load.entropy, load.dead) == (share, entropy, dead)


def test_a_window_covers_its_own_steps_and_every_rank() -> None:
    model = Model(first=2, second=3)
    load = ExpertLoad(model, 4)
    model.load = {"first": [3.0, 1.0], "second": [2.0, 1.0, 1.0]}
    window = load.measure(10).window
    assert (window.step, window.num_steps) == (10, 6)
    assert window.layers["first"].share == [0.75, 0.25]
    assert window.layers["second"].share == [0.5, 0.25, 0.25]
    assert load.measure(12).window.num_steps == 2


def test_dead_experts_are_warned_of_once_and_only_after_a_long_while() -> None:
    model = Model(first=4, second=2)
    load = ExpertLoad(model, 0)
    half = LONG_WHILE_STEPS // 2
    model.load = {"first": [8.0, 8.0, 0.0, 0.0], "second": [1.0, 1.0]}
    assert load.measure(half).warning is None
    model.load = {"first": [8.0, 8.0, 8.0, 0.0], "second": [1.0, 1.0]}
    assert load.measure(2 * half).warning == (
        f"1 of the 4 experts of first got no token for {2 * half} steps: they learn nothing; a larger "
        "model.router_aux_loss spreads tokens (metrics.jsonl, event routing)"
    )
    assert load.measure(3 * half).warning is None


def test_a_token_in_between_begins_the_while_anew() -> None:
    model = Model(only=2)
    load, half = ExpertLoad(model, 0), LONG_WHILE_STEPS // 2
    told: list[Any] = []
    for window, counts in enumerate(([9.0, 0.0], [9.0, 1.0], [9.0, 0.0], [9.0, 0.0]), start=1):
        model.load = {"only": counts}
        told.append(load.measure(window * half).warning is not None)
    assert told == [False, False, False, True]


def test_a_layer_without_tokens_has_no_dead_experts() -> None:
    load = ExpertLoad(Model(only=2), 0)
    report = load.measure(10 * LONG_WHILE_STEPS)
    assert report.warning is None
    assert report.window.layers["only"].dead == []
