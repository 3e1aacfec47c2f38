"""The closing lines of a run."""

from __future__ import annotations

import shlex
from io import StringIO
from pathlib import Path

import pytest
import tiny
from rich.console import Console

from launcher.config.loading import load_recipe
from launcher.report import show_summary


def test_the_commands_it_ends_with_can_be_pasted_whatever_the_folder_is_called(tmp_path: Path) -> None:
    runs = tmp_path / "it's $HOME"
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("clm", tmp_path / "shards", runs))
    told = StringIO()
    state = {"step": 20, "evaluations": []}
    show_summary(Console(file=told, width=300), load_recipe(str(path), []).recipe, state, tmp_path / "step-20", [])
    lines = {line[:12].strip(): line[12:] for line in told.getvalue().splitlines()}
    run = runs / "tiny"
    assert shlex.split(lines["ask it"]) == ["pretrain", "generate", str(run), "第一条"]
    assert shlex.split(lines["train on"])[-3:] == ["--recipe", str(run / "recipe.yaml"), "train.num_steps=40"]
    assert shlex.split(lines["metrics"])[-3:] == ["tensorboard", "--logdir", str(run / "tensorboard")]


@pytest.mark.parametrize(("step", "line"), [(20, "2.500 → 1.500 nats"), (30, "2.500 → 1.500 at step 20 nats")])
def test_a_loss_that_is_not_of_the_last_step_is_told_with_its_own(step: int, line: str, tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("clm", tmp_path / "shards", tmp_path))
    told = StringIO()
    evaluations = [{"step": at, "loss": loss, "accuracy": 0.1} for at, loss in ((0, 2.5), (20, 1.5))]
    state = {"step": step, "evaluations": evaluations, "data": {"unigram_entropy": 3.0}}
    show_summary(Console(file=told, width=300), load_recipe(str(path), []).recipe, state, tmp_path, [])
    assert f"validation loss {line}" in told.getvalue()
