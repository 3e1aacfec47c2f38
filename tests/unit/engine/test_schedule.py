"""The learning rate: a table by hand, and what holds for all of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.recipe import ScheduleConfig
from launcher.engine.schedule import learning_rate

KINDS = ("constant", "linear", "cosine", "wsd")


@pytest.mark.parametrize(
    ("kind", "step", "expected", "reason"),
    [
        ("linear", 5, 0.5, "half-way up the warm-up"),
        ("linear", 10, 1.0, "end of the warm-up"),
        ("linear", 60, 0.55, "half-way down"),
        ("linear", 110, 0.1, "the last step has the final share"),
        ("cosine", 60, 0.55, "half-way down"),
        ("cosine", 35, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, "a quarter down"),
        ("constant", 110, 1.0, "never falls"),
        ("wsd", 88, 1.0, "stable until the last fifth of the run"),
        ("wsd", 99, 0.55, "half-way through the decay"),
        ("wsd", 110, 0.1, "the last step"),
    ],
)
def test_values_by_hand(kind: str, step: int, expected: float, reason: str) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=10, final_share=0.1, decay_share=0.2)
    assert learning_rate(step, 1.0, schedule, 110) == pytest.approx(expected), reason


@given(
    st.sampled_from(KINDS),
    st.integers(0, 50),
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 200),
)
def test_it_never_leaves_its_bounds(
    kind: str, warmup: int, num_steps: int, final: float, decay: float, step: int
) -> None:
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, final_share=final, decay_share=decay)
    assert 0.0 <= learning_rate(step, 1e-3, schedule, num_steps) <= 1e-3 * (1 + 1e-12)
