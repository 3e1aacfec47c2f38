"""What a batch script is told before a life begins."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import tiny

from launcher import life
from launcher.cluster.rank import FIRST_PORT


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("life")
    return str(tiny.write_recipe(folder / "r.yaml", tiny.recipe_tree("clm", folder / "shards", folder / "runs")))


def ask(recipe: str, *words: str, ranks: int = 2) -> int:
    return life.main(["--job", "7", "--ranks", str(ranks), "--", "--ds_config", "zero0", "--recipe", recipe, *words])


def test_it_is_a_port_and_the_newest_step(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 10):
        folder = tmp_path / "tiny" / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert ask(recipe, f"runs={tmp_path}") == 0
    port, step = map(int, capsys.readouterr().out.split())
    assert port >= FIRST_PORT
    assert step == 10


@pytest.mark.parametrize(
    ("words", "ranks", "told"),
    [
        (["train.num_stepz=3"], 2, "RecipeError: "),
        ([], 3, "BatchShapeError: "),
    ],
)
def test_a_mistake_is_told_once(
    words: list[str], ranks: int, told: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(recipe, *words, ranks=ranks) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(told)
    assert captured.out == ""


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (errno.ESTALE, 75, "RequeueError: the file system failed: Stale file handle"),
        (errno.EACCES, 2, "RecipeError: the run's folder cannot be looked into: Permission denied"),
    ],
)
def test_a_file_system_that_is_away_is_told_from_a_folder_that_is_closed(
    number: int,
    code: int,
    told: str,
    recipe: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(folder: Path) -> list[int]:
        raise OSError(number, os.strerror(number), str(folder))

    monkeypatch.setattr(life, "complete_steps", refuse)
    assert ask(recipe) == code
    assert capsys.readouterr().err.startswith(f"{told}\n  where: ")
