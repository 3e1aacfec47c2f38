"""`pretrain checkpoints`, on folders without a model."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
from checkpoints import flip, make_checkpoint

from launcher import cli
from launcher.checkpoint import folder as layout


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps 1 to 4, one put aside, one unfinished; the recipe keeps the last two and the best."""
    monkeypatch.setattr(layout, "SECOND_LOOK_AFTER_S", 0.0)
    folder = tmp_path / "run" / "checkpoints"
    for step, loss in ((1, 5.0), (2, 1.0), (3, 4.0), (4, None)):
        make_checkpoint(folder, step, loss=loss)
    layout.put_aside(make_checkpoint(folder, 9), 9)
    make_checkpoint(folder, 10, complete=False)
    tree = tiny.recipe_tree("mlm", tmp_path / "shards", tmp_path, checkpoint__keep_best=1)
    tiny.write_recipe(tmp_path / "run" / "recipe.yaml", tree)
    return tmp_path / "run"


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert cli.main(["checkpoints", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ls_tells_step_size_time_loss_and_state(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run / "checkpoints" / "step-00000003" / "state.json")
    rows = told(capsys, "ls", str(run))
    assert [(row["step"], row["validation_loss"], row["state"]) for row in rows] == [
        (1, 5.0, "complete"),
        (2, 1.0, "complete"),
        (3, None, "damaged"),
        (4, None, "complete"),
        (9, None, "damaged"),
        (10, None, "unfinished"),
    ]
    assert [row["complete"] for row in rows] == [True, True, False, True, False, False]
    path = run / "checkpoints" / "step-00000002"
    assert rows[1]["bytes"] == sum(file.stat().st_size for file in path.iterdir())
    assert rows[1]["path"] == str(path)
    assert rows[1]["saved_at"].endswith("+00:00")
    assert cli.main(["checkpoints", "ls", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "size", "saved", "(UTC)", "validation", "loss", "state"]
    assert lines[2].split()[-2:] == ["1.0000", "complete"]


@pytest.mark.parametrize("failing", ["read_text", "stat"])
def test_one_that_cannot_be_read_does_not_hide_the_others(
    failing: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = getattr(Path, failing)

    def fail(path: Path, **how: Any) -> Any:
        if path.parent.name == "step-00000002" and path.name == "state.json":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return plain(path, **how)

    monkeypatch.setattr(Path, failing, fail)
    states = {row["step"]: (row["state"], row["complete"]) for row in told(capsys, "ls", str(run))}
    assert states[2] == ("unreadable", False)
    assert [states[step] for step in (1, 3, 4)] == [("complete", True)] * 3


def test_verify_names_the_damaged_file_and_ends_with_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [entry["problem"] for entry in told(capsys, "verify", str(run))] == [None] * 4
    flip(run / "checkpoints" / "step-00000002" / "rank-00000.safetensors")
    assert cli.main(["checkpoints", "verify", str(run)]) == 2
    told_ = capsys.readouterr()
    assert "step-00000001: every byte is as it was written" in told_.out
    problem = "rank-00000.safetensors: the file's bytes are not those that were written"
    assert told_.err.endswith(f"step-00000002: {problem}\n")
    assert cli.main(["checkpoints", "verify", str(run), "--step", "2", "--json"]) == 2
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["step"], entry["problem"]) == (2, problem)
    assert cli.main(["checkpoints", "verify", str(run), "--step", "1"]) == 0
    assert cli.main(["checkpoints", "verify", str(run), "--step", "7"]) == 2
    assert "there is no complete checkpoint of step 7" in capsys.readouterr().err


def test_what_the_run_deletes_meanwhile_is_neither_damaged_nor_there(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = run / "checkpoints" / "step-00000001"
    for looked_at in ("verify", "glance"):
        plain = getattr(layout, looked_at)

        def look(path: Path, plain: Any = plain, **how: Any) -> None:
            if path == gone:
                layout.delete(path)
            plain(path, **how)

        monkeypatch.setattr(layout, looked_at, look)
    assert [entry["step"] for entry in told(capsys, "verify", str(run))] == [2, 3, 4]
    make_checkpoint(gone.parent, 1)
    assert [row["step"] for row in told(capsys, "ls", str(run))] == [2, 3, 4, 9, 10]
    make_checkpoint(gone.parent, 1)
    assert cli.main(["checkpoints", "verify", str(run), "--step", "1"]) == 2
    assert "there is no complete checkpoint of step 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damaged", "problem"),
    [
        ("state.json", "state.json: the file's bytes are not those that were written; put aside meanwhile"),
        ("", "the run found it damaged; put aside meanwhile"),  # in bytes that are read as they were by now
    ],
)
@pytest.mark.parametrize("words", [(), ("--step", "2")])
def test_what_the_run_puts_aside_meanwhile_is_damaged(
    damaged: str,
    problem: str,
    words: tuple[str, ...],
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, moved = layout.verify, run / "checkpoints" / "step-00000002"
    layout.put_aside(moved, 2)  # one of before, which nobody asks about
    make_checkpoint(moved.parent, 2)
    if damaged:
        flip(moved / damaged)

    def verify(path: Path, **how: Any) -> None:
        if path == moved:
            layout.put_aside(path, 2)
        plain(path, **how)

    monkeypatch.setattr(layout, "verify", verify)
    assert cli.main(["checkpoints", "verify", str(run), *words]) == 2
    told_ = capsys.readouterr()
    assert told_.err == f"{moved.parent}/damaged-00000002-2: {problem}\n"
    assert len(told_.out.splitlines()) == (0 if words else 3)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_prune_keeps_what_the_recipe_keeps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(run)
    dry = told(capsys, "prune", str(run), "--dry-run")
    assert [Path(path).name for path in dry["deleted"]] == ["step-00000001"]
    assert dry["bytes"] > 0
    assert names(run) == before
    assert cli.main(["checkpoints", "prune", str(run)]) == 0
    assert "deleted" in capsys.readouterr().out
    assert names(run) == sorted(set(before) - {"step-00000001"})
    assert cli.main(["checkpoints", "prune", str(run)]) == 0
    assert capsys.readouterr().out == "nothing to delete\n"


@pytest.mark.parametrize(
    ("words", "gone", "reason"),
    [
        (["--keep-last", "1"], ["step-00000001", "step-00000003"], "the best is still kept"),
        (
            ["--keep-last", "1", "--keep-best", "0"],
            ["step-00000001", "step-00000002", "step-00000003"],
            "only the last",
        ),
        (["--keep-best", "0", "--keep-every", "2"], ["step-00000001"], "the last two and every second step's"),
        (["--damaged"], ["damaged-00000009", "step-00000001"], "what was put aside goes when asked for only"),
    ],
)
def test_options_stand_in_for_the_recipe(
    words: list[str], gone: list[str], reason: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(run)
    told(capsys, "prune", str(run), *words)
    assert names(run) == sorted(set(before) - set(gone)), reason


def test_a_save_that_may_be_going_on_is_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "step-00000010"
    for file in (*path.iterdir(), path):
        os.utime(file, (1, 1))
    told(capsys, "prune", str(run))
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "nowhere"], "CheckpointError: there are no checkpoints"),
        (["verify", "nowhere"], "CheckpointError: there are no checkpoints"),
        (["prune", "nowhere"], "CheckpointError: there are no checkpoints"),
    ],
)
def test_a_folder_that_is_no_run_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoints", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_number_to_keep_that_makes_no_sense_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["checkpoints", "prune", str(run), "--keep-last", "0"])
    assert ended.value.code == 2
    assert "'0' is not a number of 1 or more" in capsys.readouterr().err
