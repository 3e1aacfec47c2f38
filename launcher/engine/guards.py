"""Steps that would do harm: a loss or gradient that is no number, a loss far off the others.

Their update is left out, at every ZeRO stage and precision alike: whatever DeepSpeed wraps around it, in the end each
calls `step` of the optimizer it was given, when the gradients are reduced and their norm is known. (Some of its
wrappers leave out a step by themselves; stage 0 in fp32 and bf16 under autocast would take a step of NaNs.)
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from launcher.config.guards import GuardsConfig
from launcher.engine.records import Health, StepResult
from launcher.errors import DivergedError

WINDOW = 128
"""Losses a spike is told from, as OLMo-core's SkipStepOptimizer has it."""
ENOUGH = WINDOW // 2
"""Fewer tell nothing yet: assumption."""
FLOOR = 0.01
"""Of the median: on a plateau the losses of a large batch differ so little that everything would be a spike."""
LEARNT = 1e-3
"""Nats: of a smaller loss nothing is left to learn, and its gradient can be too small for fp16: assumption."""

NO_LOSS = "the loss is no finite number"
NO_GRADIENT = "the gradient is no finite number"
OVERFLOW = "the gradient overflowed in fp16"


class Guard:
    """Judges each step of a run; a context manager, which stands between DeepSpeed and its optimizer.

    Every rank comes to the same verdict, from numbers that all have.

    Args:
        engine: DeepSpeed engine.
        limits: Of the recipe.
        health: Of the run; kept up to date here.
    """

    def __init__(self, engine: Any, limits: GuardsConfig, health: Health) -> None:
        self._engine = engine
        self._limits = limits
        self.health = health
        self._verdict = ""

    def __enter__(self) -> Guard:
        optimizer = self._engine.basic_optimizer
        update = optimizer.step

        def step(*arguments: Any) -> Any:
            if not self._verdict and not self._is_norm_finite():
                self._verdict = NO_GRADIENT
            return None if self._verdict else update(*arguments)

        optimizer.step = step
        return self

    def __exit__(self, *_: object) -> None:
        del self._engine.basic_optimizer.step  # the class has its own

    def before_update(self, loss: float, norm: float | None) -> None:
        """Judge a step by its loss, and by the norm of its gradient where it is known before the update."""
        self._verdict = ""
        if not math.isfinite(loss):
            self._verdict = NO_LOSS
        elif norm is not None and not math.isfinite(norm):
            self._verdict = NO_GRADIENT
        elif self._limits.spike_z:
            self._verdict = spike(loss, self.health.recent_losses, self._limits.spike_z)

    def after_update(self, loss: float) -> str | None:
        """Why the step left the weights as they were; None where it did not."""
        health = self.health
        if not self._verdict and getattr(self._engine.optimizer, "overflow", False):
            self._verdict = OVERFLOW if self._engine.fp16_enabled() else NO_GRADIENT
        if self._verdict == OVERFLOW:
            health.overflows_in_a_row += 1
            return self._verdict
        health.overflows_in_a_row = 0
        if self._verdict:
            health.bad_in_a_row += 1
            return self._verdict
        health.bad_in_a_row = 0
        health.recent_losses = [*health.recent_losses, loss][-WINDOW:]
        return None

    @property
    def gives_up(self) -> bool:
        """Whether there were more bad steps in a row than leaving out can mend."""
        health, limits = self.health, self._limits
        return health.bad_in_a_row >= limits.max_bad_steps or health.overflows_in_a_row >= limits.max_overflows

    def _is_norm_finite(self) -> bool:
        told = getattr(self._engine.optimizer, "_global_grad_norm", None)
        norm = 0.0 if told is None else float(told)
        return math.isfinite(norm) and norm >= 0  # -1 is DeepSpeed's word for inf


def refuse_to_learn_nothing(result: StepResult, has_pairs: bool) -> None:
    """End a run whose weights learn nothing, at the step that shows it: nothing else tells before the cluster's bill.

    A step shows it whose batch has something to learn for every head: with `model.freeze` only one of them may learn.

    Args:
        result: Of the step.
        has_pairs: Whether there is a head for pairs of sentences.

    Raises:
        DivergedError: There was something to learn and an update was made, of a gradient that is exactly zero (seen:
            DeepSpeed's hooks compiled away).
    """
    losses = (result.loss, result.pair_loss or 0.0) if has_pairs else (result.loss,)
    if result.grad_norm == 0.0 and min(losses) > LEARNT and result.left_out is None:
        raise DivergedError(
            f"the model learns nothing: at a loss of {result.loss:.4f} the norm of its gradient is exactly 0",
            f"step {result.step}",
            "try model.compile=false, another --ds_config, another version of torch or DeepSpeed: one of them loses "
            "it; or a shorter model.freeze",
        )


def spike(loss: float, recent: list[float], z: float) -> str:
    """What is odd about a loss among those before it, in words; empty if it is not."""
    if len(recent) < ENOUGH:
        return ""
    median = statistics.median(recent)
    spread = max(1.4826 * statistics.median(abs(other - median) for other in recent), FLOOR * abs(median))
    if spread == 0 or (loss - median) / spread <= z:
        return ""
    return f"the loss is a spike: {loss:.4f} where {median:.4f} is usual, {(loss - median) / spread:.1f} deviations"
