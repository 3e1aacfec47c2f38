"""Steps that leave no trace: a run that rehearses its first step learns what one that does not learns, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from launcher.checkpoint.loss_scale import loss_scale_state, restore_loss_scale
from launcher.checkpoint.rng import PREFIX, random_states, restore_random_states
from launcher.checkpoint.slices import forget_steps


@contextmanager
def rehearsal(engine: Any) -> Iterator[None]:
    """Undo what steps with a learning rate of zero do to an engine that has taken none.

    They leave the weights as they are; moments, counters, random states, the loss scale of fp16 and the load of
    experts change, and are put back.
    """
    states, loss_scale = random_states(), loss_scale_state(engine)
    yield
    forget_steps(engine)
    restore_random_states({name.removeprefix(PREFIX): state for name, state in states.items()})
    restore_loss_scale(engine, loss_scale)
    engine.micro_steps = engine.global_steps = engine.global_samples = engine.skipped_steps = 0
    if hasattr(engine.module, "routing"):
        engine.module.routing.take_load()
