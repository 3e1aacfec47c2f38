"""What can run, but is likely not what was meant."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from launcher.config.compiled_ops import check_ops
from launcher.config.deepspeed_check import check_ds_config
from launcher.config.recipe import Recipe


def recipe_doubts(recipe: Recipe) -> Iterator[str]:
    """A line for each doubt about a recipe."""
    if recipe.schedule.warmup_steps > recipe.train.num_steps:
        yield (
            f"the warm-up of {recipe.schedule.warmup_steps} steps is longer than the run of {recipe.train.num_steps}: "
            f"the learning rate never gets to {recipe.optim.lr:g}"
        )
    if recipe.objective.head not in ("causal", "seq2seq"):
        for prompt in recipe.eval.prompts:
            if "[MASK]" not in prompt:
                yield f"eval.prompts: there is no [MASK] in {prompt!r}"
    saves, validations, last = recipe.checkpoint.every_steps, recipe.eval.every_steps, recipe.train.num_steps
    if recipe.checkpoint.keep_best and saves and not (validations and math.lcm(saves, validations) < last):
        yield (
            f"checkpoint.keep_best: of the checkpoints every {saves} steps only the last has a validation loss; "
            "let eval.every_steps divide checkpoint.every_steps"
        )


def doubts(recipe: Recipe, ds_file: dict[str, Any]) -> Iterator[str]:
    """A line for each doubt about a recipe and the DeepSpeed JSON beside it.

    Raises:
        MissingDependencyError: They need what cannot be compiled on this machine.
    """
    yield from recipe_doubts(recipe)
    yield from check_ds_config(ds_file, "--ds_config")
    yield from check_ops(ds_file, recipe.optim.host_adam)
