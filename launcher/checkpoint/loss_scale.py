"""fp16's dynamic loss scale, wherever DeepSpeed's optimizer of the stage keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def loss_scale_state(engine: Any) -> dict[str, float]:
    """The numbers that decide the scale of later steps; empty unless the run computes in fp16."""
    keeper = _keeper(engine)
    values = {field: getattr(keeper, field, None) for field in FIELDS}
    return {field: value for field, value in values.items() if value is not None}


def restore_loss_scale(engine: Any, state: Mapping[str, float]) -> None:
    """Put back what `loss_scale_state` returned."""
    keeper = _keeper(engine)
    for field, value in state.items():
        if hasattr(keeper, field):
            setattr(keeper, field, value)


def _keeper(engine: Any) -> Any:
    if not engine.fp16_enabled():
        return None
    # Stages 1 to 3 have a scaler object; the wrapper of stage 0 keeps the same fields in its configuration.
    return getattr(engine.optimizer, "loss_scaler", None) or getattr(engine.optimizer, "loss_scale_config", None)
