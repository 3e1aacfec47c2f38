"""A schedule fitted to a time, in a real run that is stopped on the way."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import jobs
import pytest
import tiny
from ranks import Life

from launcher.engine.completion import completed_step
from launcher.engine.length import read_fits
from launcher.engine.records import read_metrics
from launcher.goodput import goodput


@pytest.mark.slow  # it takes the time it is given
def test_a_run_with_a_budget_ends_with_it_and_with_its_schedule(shards: Path, tmp_path: Path) -> None:
    changes = {"train__num_steps": 100000, "schedule__warmup_steps": 10, "schedule__final_share": 0.1}
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("clm", shards, tmp_path, **changes))
    words = ["--ds_config", "zero2", "--recipe", str(path), "--budget", "30s"]
    run = tmp_path / "tiny"

    def taken() -> int:
        file = run / "metrics.jsonl"
        return max((x.get("step", 0) for x in read_metrics(file)), default=0) if file.exists() else 0

    first = Life(jobs.train, 2, tmp_path / "out", words)
    first.wait_until(lambda: taken() >= 60)
    first.signal(0, signal.SIGTERM)
    assert first.wait() == [75, 75], first.told()
    again = Life(jobs.train, 2, tmp_path / "out", words)
    assert again.wait() == [0, 0], again.told()

    steps = [line for line in read_metrics(run / "metrics.jsonl") if "lr" in line]
    last = steps[-1]["step"]
    assert [line["step"] for line in steps] == list(range(1, last + 1))
    assert completed_step(run) == last == read_fits(run)[-1].last
    assert 60 <= last < 100000
    assert [line["lr"] for line in steps[:10]] == pytest.approx([3.0e-3 * (n + 1) / 10 for n in range(10)])
    rates = [line["lr"] for line in steps[10:]]
    assert all(a >= b for a, b in itertools.pairwise(rates))
    found = goodput(run)
    assert (found.num_starts, found.num_failures, found.num_steps) == (2, 0, last)

    without = Life(jobs.train, 2, tmp_path / "out", words[:-2])
    assert without.wait() == [2, 2]
    assert "the run was started with --budget, and this command has none" in without.told()


def test_a_budget_that_is_over_at_a_start_measures_the_weights_it_exports(shards: Path, tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("clm", shards, tmp_path, train__num_steps=100000))
    words, run = ["--ds_config", "zero2", "--recipe", str(path), "--budget"], tmp_path / "tiny"
    file = run / "metrics.jsonl"
    first = Life(jobs.train, 2, tmp_path / "1", [*words, "1h"])
    first.wait_until(lambda: file.exists() and any("lr" in line for line in read_metrics(file)))
    first.signal(0, signal.SIGTERM)
    assert first.wait() == [75, 75], first.told()
    over = Life(jobs.train, 2, tmp_path / "2", [*words, "1s"])
    assert over.wait() == [0, 0], over.told()
    last = completed_step(run)
    assert [line["step"] for line in read_metrics(file) if line.get("event") == "evaluation"] == [0, last]
    assert max(line["step"] for line in read_metrics(file) if "lr" in line) == last
