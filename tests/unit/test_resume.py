"""What a start makes of the checkpoints it finds, before torch."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from checkpoints import make_checkpoint
from rich.console import Console

from launcher.checkpoint import folder as layout
from launcher.config.loading import load_recipe
from launcher.config.recipe import Recipe
from launcher.engine.completion import mark_complete
from launcher.errors import CheckpointError, RequeueError
from launcher.resume import is_complete, resume
from launcher.samples.passed_over import Kept, read_kept


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Of a run of four steps that are all there."""
    monkeypatch.setattr(layout, "SECOND_LOOK_AFTER_S", 0.0)
    tree = tiny.recipe_tree("clm", tmp_path / "shards", tmp_path, train__num_steps=4)
    recipe = load_recipe(str(tiny.write_recipe(tmp_path / "r.yaml", tree))).recipe
    checkpoint = make_checkpoint(recipe.run_folder / "checkpoints", 4, loss=2.5)
    tiny.write_recipe(checkpoint / "recipe.yaml", tree)
    return recipe


def refuse(times: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recipe in the checkpoint not be read so many times."""
    plain, refused = Path.read_text, []

    def read_text(path: Path, *how: Any, **named: Any) -> str:
        if path.parent.name == "step-00000004" and path.name == "recipe.yaml" and len(refused) < times:
            refused.append(number)
            raise OSError(number, os.strerror(number))
        return plain(path, *how, **named)

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_moment_without_the_file_system_ends_no_start(
    number: int, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(1, number, monkeypatch)
    assert is_complete(recipe, None)


def test_a_file_system_that_is_gone_is_no_mistake_in_the_recipe(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(2, errno.ESTALE, monkeypatch)
    with pytest.raises(RequeueError, match="the file cannot be read: Stale file handle"):
        is_complete(recipe, None)


def test_a_run_that_was_stopped_in_its_last_validation_is_complete_at_its_end_alone(recipe: Recipe) -> None:
    folder = recipe.run_folder / "checkpoints"
    layout.delete(layout.checkpoint_path(folder, 4))
    tiny.write_recipe(make_checkpoint(folder, 4) / "recipe.yaml", recipe.model_dump(mode="json"))
    assert not is_complete(recipe, None)
    mark_complete(recipe.run_folder, 4)
    assert is_complete(recipe, None)
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"num_steps": 5})})
    assert not is_complete(longer, None)


def test_a_run_under_the_name_of_another_is_refused(recipe: Recipe) -> None:
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 12345})})
    with pytest.raises(CheckpointError, match=r"the run was started with another recipe: train\.seed"):
        is_complete(other, None)


@pytest.mark.parametrize(("rank", "left"), [(0, None), (1, Kept([[16, 8]], 1))])
def test_a_run_that_begins_anew_has_passed_over_nothing(rank: int, left: Kept | None, recipe: Recipe) -> None:
    """Its checkpoints were deleted: a window that was left would be left out from its next start on, and only then."""
    Kept([[16, 8]], 1).write(recipe.run_folder)
    progress = resume(recipe, SimpleNamespace(global_rank=rank), None, None, "fp32", Console())  # type: ignore[arg-type]
    assert progress.passed_over == []
    assert read_kept(recipe.run_folder) == left
