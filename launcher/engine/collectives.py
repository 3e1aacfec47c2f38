"""How long each rank waits in DeepSpeed's collectives, measured in the last steps of a run that asks for it.

DeepSpeed can time its own collectives if it waits for each of them; that costs what overlap there was, so it is done in
steps that nothing else is measured in. A rank that waits little is one that the others wait for. What DeepSpeed starts
without waiting and a CPU cannot be made to wait for (the gathers of stage 3 over gloo) is not seen.
"""

from __future__ import annotations

import socket
from typing import Any

import deepspeed.comm
import numpy as np
from deepspeed.comm.comm import timers

from launcher.engine.process import gather

HOST_BYTES = 64
MS = 1e-3


class CollectiveTimes:
    """Times the collectives of the last steps of a run.

    Args:
        first_step: The first step to time; beyond `last` for none.
        last: The last step of the run.
    """

    def __init__(self, first_step: int, last: int) -> None:
        self._first, self._last = first_step, last
        self._step_s = 0.0
        self._steps = 0

    def before_step(self, step: int) -> None:
        """Call with the number of the step that comes."""
        if step == self._first:
            for timer in timers.get_timers().values():
                timer.reset()
            deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False, debug=False)

    def after_step(self, step: int, step_s: float) -> dict[str, Any] | None:
        """Call after every step, on all ranks; after the last, what was measured: `steps` and `ranks`."""
        if step < self._first:
            return None
        self._steps += 1
        self._step_s += step_s
        if step < self._last:
            return None
        deepspeed.comm.configure(enabled=False)
        # Not from DeepSpeed's own log: what it notes for a call is the sum of all calls so far (0.19.8).
        waited_s = MS * sum(timer.elapsed(reset=True) for timer in timers.get_timers().values())
        numbers = gather(np.array([self._step_s / self._steps, waited_s / self._steps]))
        name = socket.gethostname().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
        hosts = gather(np.frombuffer(name, dtype=np.int64))
        ranks = [
            {
                "rank": rank,
                "host": hosts[rank].tobytes().rstrip(b"\0").decode(),
                "step_s": mean_step_s,
                "collectives_s": mean_waited_s,
            }
            for rank, (mean_step_s, mean_waited_s) in enumerate(numbers.tolist())
        ]
        return {"steps": self._steps, "ranks": ranks}
