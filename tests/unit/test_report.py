"""The closing lines of a run."""

from __future__ import annotations

import shlex
from io import StringIO
from pathlib import Path

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
