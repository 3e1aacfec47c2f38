"""What a training loop waits for its batches: made by a thread while the step before runs, against made when asked for.

    python -m benchmarks.feeding [--step-ms 20] [--steps 50] [--corpus FILE.jsonl] [--json]

Steps of 64 rows of 512 tokens in two passes, as one rank trains on them, digests included. In place of an accelerator,
whose work the loop waits for without holding Python, it sleeps; what is compared is the time that a step takes longer
than that. `--step-ms 0` shows the making alone, and what it costs to hand each batch from thread to thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.digests import build_two
from benchmarks.rounds import Timing, in_turn
from benchmarks.support import Ratio, parser, read_texts, show
from launcher.config.batch import BatchPlan, plan_batch
from launcher.config.recipe import Recipe
from launcher.engine.records import StepBatch
from launcher.feed.batches import made_batches, step_batches
from launcher.feed.data import Data, open_data

GLOBAL_BATCH, MICRO_BATCH, SEQ_LEN = 64, 32, 512
NUM_TEXTS = 3000
CASES: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "mlm, concat": ("bert", {"kind": "mlm"}, {}),
    "mlm, bestfit, documents apart": ("bert", {"kind": "mlm"}, {"packing": "bestfit", "documents": "apart"}),
    "clm, concat": ("gpt2", {"kind": "clm"}, {}),
    "span, concat": ("t5", {"kind": "span"}, {}),
}
"""Family, objective and data of a recipe."""

Make = Callable[[Data, BatchPlan, int, int, int], Iterator[StepBatch]]


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--step-ms", type=float, default=20.0, metavar="T", help="what a step takes (default 20)")
    made.add_argument("--steps", type=int, default=50, metavar="N", help="in a round (default 50)")
    options = made.parse_args()
    results: list[Ratio] = []
    with tempfile.TemporaryDirectory() as name:
        shards, _ = build_two(Path(name), read_texts(options.corpus, NUM_TEXTS))
        for title, (family, objective, data) in CASES.items():
            opened = open_data(_recipe(family, objective, {"shards": shards, "seq_len": SEQ_LEN, **data}))
            ours, peer = (
                partial(_waited, make, opened, options.steps, options.step_ms / 1e3)
                for make in (step_batches, made_batches)
            )
            results.append(in_turn(title, ours, "made when asked for", peer, options.rounds))
    settings = {"rows": GLOBAL_BATCH, "seq_len": SEQ_LEN, "step_ms": options.step_ms}
    show("feeding", results, as_json=options.json, packages=("numpy",), settings=settings)


def _waited(make: Make, data: Data, num_steps: int, step_s: float) -> Timing:
    """Seconds that a step takes longer than it computes, elapsed and of all threads, the mean of some steps."""
    plan = plan_batch(GLOBAL_BATCH, MICRO_BATCH, 1)
    cpu, start, slept = time.process_time(), time.perf_counter(), 0.0
    for _ in make(data, plan, 0, 0, num_steps):
        begun = time.perf_counter()
        time.sleep(step_s)
        slept += time.perf_counter() - begun
    return (time.perf_counter() - start - slept) / num_steps, (time.process_time() - cpu) / num_steps


def _recipe(family: str, objective: dict[str, object], data: dict[str, object]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "feeding",
            "data": data,
            "objective": objective,
            "model": {"family": family},
            "batch": {"global_batch": GLOBAL_BATCH},
            "optim": {"lr": 1.0e-4},
            "train": {"num_steps": 1000, "seed": 5},
        }
    )


if __name__ == "__main__":
    main()
