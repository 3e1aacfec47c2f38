"""What is a spike, and what is not."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.config.guards import GuardsConfig
from launcher.engine.guards import NO_GRADIENT, NO_LOSS, OVERFLOW, Guard, refuse_to_learn_nothing, spike
from launcher.engine.records import Health, StepResult
from launcher.errors import DivergedError

NOISE = random.Random(3)
STEADY = [3.0 + NOISE.gauss(0, 0.05) for _ in range(128)]


@pytest.mark.parametrize(
    ("loss", "recent", "is_one"),
    [
        (3.2, STEADY, False),  # four deviations: noise has tails
        (3.8, STEADY, True),
        (1.0, STEADY, False),  # a loss that falls is welcome
        (3.8, STEADY[:63], False),  # too few to tell
        (3.1, [3.0] * 128, False),  # a plateau without noise: 3 % is no spike
        (3.4, [3.0] * 128, True),
        (3.8, [*STEADY[:100], *[9.0] * 28], True),  # outliers do not hide one
        (7.9, [8.0 - step * 0.03 for step in range(128)], False),  # the loss falls fast at the beginning
    ],
)
def test_a_spike_is_told_from_noise(loss: float, recent: list[float], is_one: bool) -> None:
    assert bool(spike(loss, recent, 10.0)) == is_one


def test_a_spike_says_what_is_odd_about_it() -> None:
    assert spike(4.0, [3.0] * 128, 10.0) == "the loss is a spike: 4.0000 where 3.0000 is usual, 33.3 deviations"


def result(**fields: Any) -> StepResult:
    made = {"step": 7, "loss": 2.5, "log_z_squared": None, "lr": 1e-3, "grad_norm": 1.0, "step_tokens": 100}
    return StepResult(**{**made, "step_s": 0.5, "data_wait_s": 0.01, "batch_digest": "0" * 16, **fields})


def test_a_run_that_learns_nothing_ends_at_its_first_step() -> None:
    with pytest.raises(DivergedError) as raised:
        refuse_to_learn_nothing(result(grad_norm=0.0), has_pairs=False)
    assert str(raised.value).splitlines()[0].endswith("at a loss of 2.5000 the norm of its gradient is exactly 0")
    assert "where: step 7" in str(raised.value)
    assert "try model.compile=false" in str(raised.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"grad_norm": 1e-30},
        {"grad_norm": None},  # of a gradient that is no number
        {"grad_norm": 0.0, "left_out": OVERFLOW},  # none was computed
        {"grad_norm": 0.0, "loss": 0.0},  # nothing to predict: every document of the step is excluded
        {"grad_norm": 0.0, "loss": 1e-6},  # nothing left to learn, and fp16's smallest number is 6e-8
    ],
    ids=str,
)
def test_other_steps_go_on(fields: dict[str, Any]) -> None:
    refuse_to_learn_nothing(result(**fields), has_pairs=False)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({"pair_loss": 0.7}, True),
        ({"pair_loss": None}, False),  # no pair of the step has a label, and its head may be all that learns
        ({"pair_loss": 0.7, "loss": 0.0}, False),  # no token is hidden
    ],
    ids=str,
)
def test_of_two_heads_both_must_have_had_something_to_learn(fields: dict[str, Any], ends: bool) -> None:
    with pytest.raises(DivergedError) if ends else nullcontext():
        refuse_to_learn_nothing(result(grad_norm=0.0, **fields), has_pairs=True)


class Optimizer:
    def __init__(self) -> None:
        self.updates = 0

    def step(self) -> None:
        self.updates += 1


def engine(wrapper: Any = None, fp16: bool = False) -> Any:
    basic = Optimizer()
    return SimpleNamespace(basic_optimizer=basic, optimizer=wrapper or basic, fp16_enabled=lambda: fp16)


@pytest.mark.parametrize(
    ("loss", "norm", "wrapper", "fp16", "verdict"),
    [
        (3.0, 1.0, None, False, None),
        (math.nan, 1.0, None, False, NO_LOSS),
        (3.0, math.inf, None, False, NO_GRADIENT),
        (3.0, None, SimpleNamespace(_global_grad_norm=math.nan), False, NO_GRADIENT),
        (3.0, None, SimpleNamespace(_global_grad_norm=-1.0), False, NO_GRADIENT),  # DeepSpeed's word for inf
        (3.0, None, SimpleNamespace(overflow=True), True, OVERFLOW),
        (3.0, None, SimpleNamespace(overflow=True), False, NO_GRADIENT),
    ],
)
def test_a_verdict_for_each_way_a_step_can_be_bad(
    loss: float, norm: float | None, wrapper: Any, fp16: bool, verdict: str | None
) -> None:
    of_deepspeed = engine(wrapper, fp16)
    with Guard(of_deepspeed, GuardsConfig(), Health()) as guard:
        guard.before_update(loss, norm)
        if not getattr(wrapper, "overflow", False):  # then DeepSpeed itself does not call it
            of_deepspeed.basic_optimizer.step()
        assert guard.after_update(loss) == verdict
    assert of_deepspeed.basic_optimizer.updates == (verdict is None)
    of_deepspeed.basic_optimizer.step()  # afterwards it is as it was
    assert of_deepspeed.basic_optimizer.updates == (verdict is None) + 1


def test_overflows_that_are_not_in_a_row_are_how_fp16_finds_its_scale() -> None:
    wrapper = SimpleNamespace(overflow=False)
    with Guard(engine(wrapper, fp16=True), GuardsConfig(max_overflows=2), Health()) as guard:
        for overflow, gives_up in ((True, False), (False, False), (True, False), (True, True)):
            wrapper.overflow = overflow
            guard.before_update(3.0, None)
            guard.after_update(3.0)
            assert guard.gives_up == gives_up


def test_it_gives_up_after_some_in_a_row_only() -> None:
    with Guard(engine(), GuardsConfig(max_bad_steps=3), Health()) as guard:
        for loss, gives_up in ((math.nan, False), (math.nan, False), (3.0, False), *[(math.nan, False)] * 2):
            guard.before_update(loss, None)
            guard.after_update(loss)
            assert guard.gives_up == gives_up
        guard.before_update(math.inf, None)
        guard.after_update(math.inf)
        assert guard.gives_up
        assert guard.health.recent_losses == [3.0]
