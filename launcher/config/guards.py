"""What a run does when something goes wrong; a restart may change all of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from launcher.config.record import Record

Count = Annotated[int, Field(ge=0)]


class GuardsConfig(Record):
    """What a run does when something goes wrong."""

    stop_within_s: PositiveFloat = 300.0
    """Seconds after a signal (SIGTERM, SIGUSR1, SIGUSR2, Ctrl-C) or the end of its launcher within which the run ends:
    with the step it is in finished and saved, or without if that takes longer."""
    hang_factor: PositiveFloat = 20.0
    """A step that takes this many times the median of the last 64 is a hang: every rank writes what each of its threads
    is doing to `logs/stacks-rank-….txt`, and the run ends with 75."""
    hang_floor_s: PositiveFloat = 120.0
    """But no step shorter than this is one."""
    slow_s: PositiveFloat = 1800.0
    """What may take its time: the start, the first step, a validation without an answer, a save, the export."""
    spike_z: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 10.0
    """A loss that lies more than this many robust standard deviations (1.4826 × the median distance from the median, at
    least 1 % of it) above the median of the last 128 is a spike, and the weights are left as they were; 0 for never.
    OLMo skips at 6 standard deviations of 128 steps; outliers do not widen this one."""
    max_bad_steps: PositiveInt = 3
    """After this many steps in a row with a spike, or a loss or gradient that is no finite number, the run goes back to
    a checkpoint and passes over the data it had read since; a validation that is none does it at once."""
    max_overflows: PositiveInt = 40
    """The same after this many overflows in a row in fp16: one or two are how its loss scale is found."""
    back_checkpoints: PositiveInt = 1
    """How many checkpoints it goes back: 1 is the newest."""
    max_rewinds: Count = 3
    """How many times it may do so in its life, before it ends with a report."""
    max_fruitless_starts: PositiveInt = 5
    """After this many starts in a row that failed without a step, the run is not started again: whatever requeues it
    would do so for ever."""
    pace_every_steps: Count = 100
    """Steps between two looks at which rank is slow: the time each takes by itself, with the host of the slowest, as
    `pace` events in `metrics.jsonl`; 0 for none."""
    slow_rank_factor: Annotated[float, Field(gt=1.0, allow_inf_nan=False)] = 1.5
    """A rank that takes this many times what is usual among the others, and a tenth of a step more, is told as slow."""
