"""From shards and a recipe to this rank's part of each step: samples and objective put together.

Every batch is a pure function of the step, so a run that starts again reads nothing it does not train on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.config.batch import BatchPlan
from launcher.config.recipe import CausalObjective, MaskedObjective, Recipe, SpanObjective
from launcher.engine.records import Arrays, StepBatch
from launcher.objectives.base import IGNORE_INDEX, Objective
from launcher.objectives.clm import CausalLM
from launcher.objectives.mlm import MaskedLM
from launcher.objectives.span import SpanCorruption
from launcher.samples.digest import combine, digest
from launcher.samples.loader import Loader
from launcher.samples.order import Order
from launcher.samples.passes import pass_positions
from launcher.samples.windows import Windows
from launcher.shards.manifest import Manifest, TokenizerInfo, read_manifest
from launcher.shards.reader import open_split

VALIDATION_SEED = 0x76616C  # the same noise at every validation of every run, so that losses compare


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The samples of a run and what is to be predicted of them."""

    manifest: Manifest
    objective: Objective
    train: Loader
    fixed_objective: Objective
    """The same objective with one noise for every validation of every run, so that losses compare."""
    validation: Loader | None
    """None where no document was held out."""


def open_data(recipe: Recipe) -> Data:
    """Open the shards in the order and with the objective of the recipe.

    Raises:
        ShardError: They are missing or damaged.
        ObjectiveError: The tokenizer or the length cannot serve the objective.
    """
    folder, seed = recipe.data.shards, recipe.train.seed
    manifest = read_manifest(folder)
    objective = build_objective(recipe, manifest.tokenizer, seed)
    fixed = build_objective(recipe, manifest.tokenizer, VALIDATION_SEED)
    held_out = manifest.splits["validation"].num_documents > 0
    return Data(
        manifest=manifest,
        objective=objective,
        train=open_loader(folder, "train", objective, manifest, seed),
        fixed_objective=fixed,
        validation=open_loader(folder, "validation", fixed, manifest, VALIDATION_SEED) if held_out else None,
    )


def build_objective(recipe: Recipe, tokenizer: TokenizerInfo, seed: int) -> Objective:
    """The objective the recipe names."""
    seq_len, special = recipe.data.seq_len, tokenizer.special
    match recipe.objective:
        case MaskedObjective(mask_share=share):
            return MaskedLM(seq_len, seed, special, tokenizer.vocab_size, mask_share=share)
        case CausalObjective():
            return CausalLM(seq_len, special)
        case SpanObjective(density=density, mean_span=mean_span):
            return SpanCorruption(seq_len, seed, special, density=density, mean_span=mean_span)


def open_loader(folder: Path, split: str, objective: Objective, manifest: Manifest, seed: int) -> Loader:
    """A split's windows in a keyed order; what identifies the tokens is the checksums of their files."""
    windows = Windows(open_split(folder, split), objective.window_length, objective.window_stride, objective.fill_id)
    source = ",".join(file.xxh3 for file in manifest.splits[split].files)
    return Loader(windows, Order(windows.num_samples, seed), source=source)


def step_batches(data: Data, plan: BatchPlan, rank: int, first: int, last: int) -> Iterator[StepBatch]:
    """This rank's part of each step from `first` (steps already taken) to `last`: a pure function of the step."""
    for step in range(first, last):
        passes: list[Arrays] = []
        digests = []
        num_targets = num_tokens = 0
        for index in range(plan.grad_accum_steps):
            positions = pass_positions(step, index, rank, plan.world_size, plan.micro_batch, plan.global_batch)
            sample = data.train.fetch(positions)
            batch = data.objective.batch(sample.tokens_BL, sample.num_tokens_B, sample.positions_B)
            digests.append(combine(digest(positions, batch)))
            num_targets += int(np.count_nonzero(batch["labels"] != IGNORE_INDEX))
            num_tokens += int(batch["attention_mask"].sum())
            passes.append(model_inputs(batch))
        total = combine(np.array(digests, dtype=np.uint64))
        yield StepBatch(passes=passes, num_targets=num_targets, num_tokens=num_tokens, digest=total)


def validation_batches(recipe: Recipe, data: Data, world_size: int, rank: int) -> Iterator[Arrays]:
    """This rank's validation batches; as many on every rank, since a forward pass under ZeRO-3 is a collective."""
    loader = data.validation
    if loader is None:
        return
    num_samples = min(loader.windows.num_samples, recipe.eval.max_samples or loader.windows.num_samples)
    size = recipe.eval.micro_batch
    for first in range(0, num_samples, size * world_size):
        wanted = first + rank * size + np.arange(size, dtype=np.int64)
        positions = np.minimum(wanted, num_samples - 1)
        sample = loader.fetch(positions)
        batch = data.fixed_objective.batch(sample.tokens_BL, sample.num_tokens_B, positions)
        batch["labels"][wanted >= num_samples] = IGNORE_INDEX  # rows that only fill the last round count for nothing
        yield model_inputs(batch)


def model_inputs(batch: Arrays) -> Arrays:
    """Leave out an attention mask that hides nothing: attention is faster without one."""
    return {name: array for name, array in batch.items() if name != "attention_mask" or not array.all()}
