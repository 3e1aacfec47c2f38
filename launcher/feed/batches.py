"""From the data of a run to this rank's part of each step, and of each validation.

Every batch is a pure function of the step, so a run that starts again reads nothing it does not train on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from launcher.config.batch import BatchPlan
from launcher.config.recipe import Recipe
from launcher.engine.records import Arrays, EvalBatch, StepBatch
from launcher.feed.data import Data
from launcher.objectives.base import IGNORE_INDEX, Batch, Objective
from launcher.objectives.mixed import PART_IDS, ObjectiveMixture
from launcher.samples.ahead import ahead
from launcher.samples.digest import combine, digest
from launcher.samples.passed_over import Window, moved_on
from launcher.samples.passes import pass_positions

LOOKED_AT = 256
"""Samples among which the longest one is looked for (assumption: more change it little)."""
POSITION_IDS = "position_ids"
_NO_PAIRS = np.empty(0, dtype=np.int64)


def step_batches(
    data: Data, plan: BatchPlan, rank: int, first: int, last: int, passed_over: Sequence[Window] = ()
) -> Iterator[StepBatch]:
    """This rank's part of each step from `first` (steps already taken) to `last`: a pure function of the step.

    A thread makes the next one while the one before is trained on.

    Args:
        data: Opened shards.
        plan: How a batch is cut into passes.
        rank: This one.
        first: Steps already taken.
        last: Steps taken in the end.
        passed_over: Windows of the data that no step trains on.
    """
    return ahead(made_batches(data, plan, rank, first, last, passed_over))


def made_batches(
    data: Data, plan: BatchPlan, rank: int, first: int, last: int, passed_over: Sequence[Window] = ()
) -> Iterator[StepBatch]:
    """What `step_batches` gives, each made when it is asked for."""
    rank, part = divmod(rank, plan.ranks_per_sample)
    if first < last:
        data.train.advise(_positions(plan, rank, first, passed_over))
    for step in range(first, last):
        if step + 1 < last:  # the disk reads the next step's blocks while this one is made
            data.train.advise(_positions(plan, rank, step + 1, passed_over))
        passes: list[Arrays] = []
        digests = []
        num_targets = num_tokens = num_pairs = 0
        for positions in _positions(plan, rank, step, passed_over).reshape(plan.passes_at(step), -1):
            batch = data.objective.batch(data.train.fetch(positions))
            if part == 0:  # of each sample once
                digests.append(combine(digest(positions, batch)))
            batch = part_of(batch, part, plan.sequence_parallel)
            num_targets += int(np.count_nonzero(batch["labels"] != IGNORE_INDEX))
            num_tokens += int(batch["attention_mask"].sum())
            num_pairs += int(np.count_nonzero(batch.get("pair_labels", _NO_PAIRS) != IGNORE_INDEX))
            passes.append(model_inputs(batch))
        total = combine(np.array(digests, dtype=np.uint64))
        yield StepBatch(
            passes=passes, num_targets=num_targets, num_tokens=num_tokens, num_pairs=num_pairs, digest=total
        )


def longest_step(data: Data, plan: BatchPlan, step: int, rank: int) -> StepBatch:
    """Passes as those of a step, made of one sample again and again: the one of its first with most tokens.

    Args:
        data: Of the run.
        plan: How a step is cut.
        step: Steps already taken.
        rank: This one.
    """
    first, size = plan.schedule.position_at(step), plan.schedule.global_batch_at(step)
    batch = data.objective.batch(data.train.fetch(np.arange(first, first + min(size, LOOKED_AT), dtype=np.int64)))
    is_target_BS, is_token_BS = batch["labels"] != IGNORE_INDEX, batch["attention_mask"] != 0
    row = int(np.argmax(is_target_BS.sum(axis=1) + is_token_BS.sum(axis=1)))
    batch = part_of(batch, rank % plan.ranks_per_sample, plan.sequence_parallel)
    inputs = {name: np.repeat(array[row : row + 1], plan.micro_batch, 0) for name, array in model_inputs(batch).items()}
    # Two passes show what accumulating takes; more take no more.
    passes: list[Arrays] = [inputs] * min(plan.passes_at(step), 2)
    rows = len(passes) * plan.micro_batch
    return StepBatch(
        passes=passes,
        num_targets=rows * int(is_target_BS[row].sum()),
        num_tokens=rows * int(is_token_BS[row].sum()),
        num_pairs=rows * int(batch.get("pair_labels", _NO_PAIRS)[row : row + 1].size),
        digest=0,
    )


def validation_batches(
    recipe: Recipe, data: Data, world_size: int, rank: int, sequence_parallel: int = 1, tensor_parallel: int = 1
) -> Iterator[EvalBatch]:
    """This rank's validation batches; as many on every rank, since a forward pass under ZeRO-3 is a collective.

    Each is of one corpus, and of a mixture of objectives made by one part, so that both can be measured by themselves.
    """
    ranks_per_sample = sequence_parallel * tensor_parallel
    (rank, part), world_size = divmod(rank, ranks_per_sample), world_size // ranks_per_sample
    size = recipe.eval.micro_batch
    every = size * world_size
    special = data.tokenizer.special
    markers = np.array([token_id for token_id in special.all_ids if token_id != special.unk], dtype=np.int64)
    for corpus, loader in enumerate(data.validation):
        num_samples = min(loader.num_samples, recipe.eval.max_samples or loader.num_samples)
        for made_by, positions in _by_part(data.fixed_objective, num_samples):
            last = len(positions) - 1
            for first in range(0, len(positions), every):
                wanted = first + rank * size + np.arange(size, dtype=np.int64)
                ahead_of = wanted + every if first else np.append(wanted, wanted + every)
                loader.advise(positions[np.minimum(ahead_of, last)])
                batch = data.fixed_objective.batch(loader.fetch(positions[np.minimum(wanted, last)]))
                # Rows that only fill the last round count for nothing.
                for name in ("labels", "pair_labels"):
                    if name in batch:
                        batch[name][wanted > last] = IGNORE_INDEX
                batch = part_of(batch, part, sequence_parallel)
                is_text = (batch["labels"] >= 0) & ~np.isin(batch["labels"], markers)
                num_text = int(is_text.sum())
                yield EvalBatch(corpus=corpus, part=made_by, inputs=model_inputs(batch), num_text_targets=num_text)


def _by_part(objective: Objective, num_samples: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The parts of a mixture and the positions of their samples; all of them for an objective that is none."""
    positions = np.arange(num_samples, dtype=np.int64)
    if not isinstance(objective, ObjectiveMixture):
        yield 0, positions
        return
    parts = objective.parts_at(positions)
    for part in range(len(objective.parts)):
        yield part, positions[parts == part]


def bytes_per_token(data: Data) -> dict[str, float | None]:
    """Of the held-out documents of each corpus that has some, document ends not counted; None if unknown."""
    sizes = {}
    for loader in data.validation:
        name = loader.corpora[0].name
        split = data.manifests[name].splits["validation"]
        sizes[name] = split.text_bytes / (split.num_tokens - split.num_documents) if split.text_bytes else None
    return sizes


def model_inputs(batch: Arrays) -> Arrays:
    """Leave out an attention mask that hides nothing, or what the documents' numbers tell: attention is faster without;
    and what no model takes.
    """
    needless = "segment_ids" in batch or POSITION_IDS in batch or batch["attention_mask"].all()
    without = {PART_IDS, "attention_mask"} if needless else {PART_IDS}
    return {name: array for name, array in batch.items() if name not in without}


def part_of(batch: Batch, part: int, of: int) -> Batch:
    """What one of several ranks computes of each sequence; it keeps no mask of attention (`models.sequence_parallel`).

    Args:
        batch: The objective's arrays, [B, S] or [B].
        part: Which of the parts.
        of: How many there are.
    """
    if of == 1:
        return batch
    length = batch["input_ids"].shape[1] // of
    places = np.arange(part * length, (part + 1) * length, dtype=np.int64)
    cut = {name: array[:, places] if array.ndim > 1 else array for name, array in batch.items()}
    return cut | {POSITION_IDS: np.broadcast_to(places, cut["input_ids"].shape).copy()}


def _positions(plan: BatchPlan, rank: int, step: int, passed_over: Sequence[Window]) -> NDArray[np.int64]:
    """Positions of this rank in a step, its passes one after another."""
    first, size = plan.schedule.position_at(step), plan.schedule.global_batch_at(step)
    first = moved_on(first, passed_over)
    return np.concatenate(
        [
            pass_positions(first, index, rank, plan.world_size, plan.micro_batch, size)
            for index in range(plan.passes_at(step))
        ]
    )
