"""Asked to stop, by whatever and whomever, all ranks finish the same step, save, and end with 75."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import jobs
import pytest
import tiny
import troubled_jobs
from ranks import Life

from launcher.checkpoint.folder import complete_steps
from launcher.engine.completion import completed_step
from launcher.engine.records import read_metrics

STEPS = 150
"""Two seconds or more: a signal after the fifth comes before the last."""


def words_of(name: str, shards: Path, folder: Path, **changes: object) -> list[str]:
    tree = tiny.recipe_tree("clm", shards, folder, name=name, **changes)
    path = tiny.write_recipe(folder / f"{name}.yaml", tree)
    return ["--ds_config", "zero2", "--recipe", str(path)]


def came_to(run: Path, step: int) -> Callable[[], bool]:
    """Whether a run has taken a step."""
    file = run / "metrics.jsonl"
    return lambda: file.exists() and any(x.get("step", 0) >= step for x in read_metrics(file))


def losses(run: Path) -> list[tuple[int, float, str]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [(x["step"], x["loss"], x["batch_digest"]) for x in lines if "batch_digest" in x]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float, str]]:
    """The steps of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    life = Life(jobs.train, 2, folder / "out", words_of("whole", shards, folder, train__num_steps=STEPS))
    assert life.wait() == [0, 0], life.told()
    return losses(folder / "whole")


@pytest.mark.parametrize(
    ("number", "rank", "code"),
    [
        (signal.SIGTERM, 0, 75),  # the launcher's way
        (signal.SIGUSR1, 1, 75),  # Slurm's warning, and not to rank 0
        (signal.SIGINT, 1, 130),  # Ctrl-C: nobody asks to be started again
    ],
)
def test_a_signal_to_one_rank_stops_all_after_the_same_step_saved(
    number: int, rank: int, code: int, shards: Path, tmp_path: Path, whole: list[tuple[int, float, str]]
) -> None:
    words = words_of("stopped", shards, tmp_path, train__num_steps=STEPS)
    run = tmp_path / "stopped"
    life = Life(jobs.train, 2, tmp_path / "out", words)
    life.wait_until(came_to(run, 5))
    life.signal(rank, number)
    assert life.wait() == [code, code], life.told()
    (saved,) = complete_steps(run / "checkpoints")
    assert saved == losses(run)[-1][0] < STEPS
    assert f"stopped after step {saved} as asked" in life.told()
    assert "Traceback" not in life.told()

    again = Life(jobs.train, 2, tmp_path / "out", words)
    assert again.wait() == [0, 0], again.told()
    assert losses(run) == whole


def test_a_run_that_was_stopped_in_its_last_validation_makes_up_for_it_once(shards: Path, tmp_path: Path) -> None:
    words, run = words_of("unmeasured", shards, tmp_path, train__num_steps=6), tmp_path / "unmeasured"
    stopped = Life(troubled_jobs.train_asked_to_stop_in_a_validation, 2, tmp_path / "1", words, 6, False)
    assert stopped.wait() == [75, 75], stopped.told()
    assert "stopped after step 6 as asked" in stopped.told()
    for number, validations in ((2, [0, 6]), (3, [0, 6])):
        again = Life(jobs.train, 2, tmp_path / str(number), words)
        assert again.wait() == [0, 0], again.told()
        assert [x["step"] for x in read_metrics(run / "metrics.jsonl") if x.get("event") == "evaluation"] == validations
        assert ("nothing to train" in again.told()) == (number == 3)


def handles(life: Life, rank: int, number: int) -> bool:
    """Whether a rank has a handler for a signal by now."""
    status = Path(f"/proc/{life.ranks[rank].pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) & (1 << (number - 1)))


def test_interrupted_twice_it_stops_at_once(shards: Path, tmp_path: Path) -> None:
    life = Life(jobs.train, 2, tmp_path / "out", words_of("twice", shards, tmp_path, train__num_steps=100000))
    life.wait_until(came_to(tmp_path / "twice", 2))
    life.signal(1, signal.SIGSTOP)  # so that the step never ends
    life.signal(0, signal.SIGINT)
    with pytest.raises(TimeoutError):
        life.wait_for(0, 2.0)
    life.signal(0, signal.SIGINT)
    assert life.wait(but=(1,))[0] == 130
    assert life.told().rstrip().endswith("interrupted twice: stopped at once")


def test_a_step_that_does_not_end_is_not_waited_for_longer_than_there_is_time(shards: Path, tmp_path: Path) -> None:
    words = words_of("late", shards, tmp_path, train__num_steps=100000, guards__stop_within_s=1.0)
    life = Life(jobs.train, 2, tmp_path / "out", words)
    life.wait_until(came_to(tmp_path / "late", 2))
    life.signal(1, signal.SIGSTOP)
    life.signal(0, signal.SIGTERM)
    assert life.wait(but=(1,))[0] == 75
    assert "stopped (SIGTERM) without saving: guards.stop_within_s=1 was over" in life.told()


def test_before_the_first_step_a_signal_ends_the_run_at_once(shards: Path, tmp_path: Path) -> None:
    life = Life(jobs.train, 2, tmp_path / "out", words_of("early", shards, tmp_path))
    life.signal(1, signal.SIGSTOP)  # rank 0 waits for it at the meeting point
    life.wait_until(lambda: handles(life, 0, signal.SIGTERM))
    life.signal(0, signal.SIGTERM)
    assert life.wait(but=(1,))[0] == 75
    assert "stopped (SIGTERM); the same command goes on from the last checkpoint" in life.told()


def test_a_killed_rank_takes_the_others_down_with_one_clear_line(shards: Path, tmp_path: Path) -> None:
    words = words_of("killed", shards, tmp_path, train__num_steps=100000)
    life = Life(jobs.train, 3, tmp_path / "out", [*words, "batch.global_batch=6"])
    life.wait_until(came_to(tmp_path / "killed", 3))
    life.signal(2, signal.SIGKILL)
    assert life.wait() == [75, 75, -9], life.told()
    told = life.told()
    assert told.count("has died: stopped; the same command goes on from the last checkpoint") == 1
    assert told.rstrip().endswith("from the last checkpoint")
    assert "rank 2 on" in told
    assert "Traceback" not in told


def test_a_second_job_in_the_same_folder_is_refused_and_the_first_goes_on(shards: Path, tmp_path: Path) -> None:
    words = words_of("shared", shards, tmp_path, train__num_steps=100000)
    first = Life(jobs.train, 1, tmp_path / "first", words)
    first.wait_until(came_to(tmp_path / "shared", 1))
    second = Life(jobs.train, 1, tmp_path / "second", words)
    assert second.wait() == [2]
    assert "RunInUseError: another job is at work in the run's folder: pid" in second.told()
    first.wait_until(came_to(tmp_path / "shared", 3))
    first.signal(0, signal.SIGTERM)
    assert first.wait() == [75]


def test_only_a_run_that_is_done_is_marked_complete(shards: Path, tmp_path: Path) -> None:
    words = words_of("marked", shards, tmp_path, train__num_steps=100000)
    run = tmp_path / "marked"
    life = Life(jobs.train, 1, tmp_path / "out", words)
    life.wait_until(came_to(run, 1))
    life.signal(0, signal.SIGUSR2)
    assert life.wait() == [75]
    assert completed_step(run) is None
    last = complete_steps(run / "checkpoints")[-1] + 2
    for more in (0, 1):
        life = Life(jobs.train, 1, tmp_path / "out", [*words, f"train.num_steps={last + more}"])
        assert life.wait() == [0], life.told()
        assert completed_step(run) == last + more
