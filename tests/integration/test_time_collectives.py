"""The last steps tell what every rank waited in collectives, and change nothing of what is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jobs
import tiny
from ranks import run_ranks

from launcher.engine.records import read_metrics


def test_the_last_steps_time_every_ranks_collectives(tmp_path: Path) -> None:
    shards = tiny.make_shards(tmp_path, "bpe")
    lines: dict[int, list[dict[str, Any]]] = {}
    for timed in (0, 3):
        runs = tmp_path / f"runs-{timed}"
        changes = {"train__num_steps": 6, "train__time_collectives": timed}
        recipe = tiny.write_recipe(tmp_path / f"{timed}.yaml", tiny.recipe_tree("clm", shards, runs, **changes))
        assert run_ranks(jobs.train, 2, ["--ds_config", "zero2.json", "--recipe", str(recipe)]) == [0, 0]
        lines[timed] = read_metrics(runs / "tiny" / "metrics.jsonl")
    assert [line["loss"] for line in lines[3] if "lr" in line] == [line["loss"] for line in lines[0] if "lr" in line]
    assert not [line for line in lines[0] if line.get("event") == "collectives"]
    (told,) = [line for line in lines[3] if line.get("event") == "collectives"]
    assert (told["step"], told["steps"], [rank["rank"] for rank in told["ranks"]]) == (6, 3, [0, 1])
    assert all(rank["host"] and 0 < rank["collectives_s"] < rank["step_s"] for rank in told["ranks"])
