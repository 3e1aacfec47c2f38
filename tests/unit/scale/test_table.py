"""What a scaling test tells, from lines of metrics that were written by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from launcher.cli import main
from launcher.errors import ScaleError
from launcher.scale.plot import as_svg
from launcher.scale.program import Sweep
from launcher.scale.table import Row, against_smallest, as_markdown, row_of, write_all


def lines(
    ranks: int, step_s: float, hosts: int = 1, collectives_s: float = 0.0, slow: int | None = None
) -> list[dict[str, Any]]:
    """25 steps, of which the first five are slow, 10 more with collectives timed, and what these told."""
    steps = [
        {
            "step": step,
            "step_s": 10.0 if step <= 5 else step_s,
            "data_wait_s": 0.1 * step_s,
            "tokens_per_s": 1000.0 / step_s,
        }
        for step in range(1, 36)
    ]
    told = [
        {
            "rank": rank,
            "host": f"node{rank * hosts // ranks}",
            "step_s": step_s,
            "collectives_s": collectives_s / 2 if rank * hosts // ranks == slow else collectives_s,
        }
        for rank in range(ranks)
    ]
    return [
        {"event": "evaluation", "step": 0},
        *steps,
        {"event": "collectives", "step": 35, "steps": 10, "ranks": told},
    ]


def rows() -> list[Row]:
    return [row_of(2, 8, 5, lines(2, 0.625, hosts=2, collectives_s=0.125, slow=1)), row_of(1, 8, 5, lines(1, 1.0))]


def test_the_warm_up_and_the_steps_of_the_collectives_are_not_timed() -> None:
    row = row_of(1, 8, 5, lines(1, 0.5))
    assert (row.steps, row.step_s_median, row.step_s_p95) == (20, 0.5, 0.5)


def test_efficiency_is_tokens_a_second_and_rank_against_the_smallest() -> None:
    one, two = against_smallest(rows())
    assert (one.size, one.efficiency, two.tokens_per_s, two.tokens_per_s_per_rank) == (1, 1.0, 1600.0, 800.0)
    assert two.efficiency == pytest.approx(0.8)


def test_the_slowest_host_is_the_one_that_waits_least() -> None:
    two = against_smallest(rows())[1]
    assert (two.hosts, two.slowest_host) == (2, "node1")
    # node0 computes 0.5 s, node1 0.5625 s; between two hosts the median is their mean
    assert two.slowest_host_behind == pytest.approx(0.5625 / 0.53125 - 1)
    assert two.collectives_share == pytest.approx((0.125 + 0.0625) / (2 * 0.625))
    assert two.data_wait_share == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (lines(1, 0.5)[:-1], "the run of size 1 did not end"),
        (lines(1, 0.5)[10:], "the run of size 1 has 16 timed steps"),
    ],
)
def test_a_run_that_tells_too_little_is_refused(told: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ScaleError, match=message):
        row_of(1, 8, 5, told)


def test_table_and_picture_say_the_same(tmp_path: Path) -> None:
    table = against_smallest(rows())
    write_all(tmp_path, table, {"recipe": "tiny", "scaling": "strong"})
    as_objects = json.loads((tmp_path / "table.json").read_text())
    as_lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert as_objects["recipe"] == "tiny"
    assert [row["ranks"] for row in as_objects["rows"]] == [int(line["ranks"]) for line in as_lines] == [1, 2]
    assert as_markdown(table).splitlines()[-1] == (
        "| 2 | 2 | 2 | 8 | 20 | 0.6250 (0.6250, 0.6250) | 1,600 | 800 | 80.0% | 10.0% | 15.0% | node1 (+6%) |"
    )
    assert as_markdown(table) == (tmp_path / "table.md").read_text()
    picture = ET.fromstring(as_svg(table, "tiny <strong>"))
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"tiny <strong>", "tokens/s", "efficiency, %", "ranks"} <= set(texts)
    assert len([element for element in picture.iter() if element.tag.endswith("circle")]) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "1,x", "--weak"], "'1,x' are no sizes"),
        (["--sizes", "0", "--weak"], "'0' are no sizes"),
        (["--sizes", "1", "--weak", "--steps", "5"], "5 steps say little of the spread"),
        (["--sizes", "1,3", "--strong"], "cannot be cut into 3 equal shares"),
        (["--sizes", "1", "--strong", "--ds_config", "zero9"], "there is no DeepSpeed configuration"),
    ],
)
def test_sizes_that_cannot_be_are_told_before_anything_runs(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["scale", "law-bert-zh", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"SLURM_JOB_NUM_NODES": "2"}, "the largest size is 4 nodes, and the job has 2"),
        ({}, "the largest size is 4 nodes, and the job has none"),
        ({"SLURM_JOB_NUM_NODES": "4", "SLURM_NTASKS_PER_NODE": "x"}, "'x' is no number of ranks a node"),
    ],
)
def test_a_job_must_have_the_nodes_of_the_largest_size(
    env: dict[str, str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_JOB_ID": "7", **env}.items():
        monkeypatch.setenv(name, value)
    assert main(["scale", "law-bert-zh", "--sizes", "1,4", "--weak"]) == 2
    assert message in capsys.readouterr().err


def test_in_a_container_the_ranks_are_its_pythons() -> None:
    sweep = Sweep(
        recipe="gpt2",
        overrides=(),
        ds_config="zero1",
        sizes=(2,),
        is_weak=True,
        steps=20,
        warm_up=5,
        out=Path("out"),
        per_node=8,
        srun_options=("--container-image=my image",),
        before_python=("apptainer", "exec"),
    )
    assert sweep.command(2, ["x=1"]) == [
        *("srun", "--export=ALL", "--kill-on-bad-exit=1", "--nodes=2", "--ntasks=16", "--ntasks-per-node=8"),
        *("--container-image=my image", "apptainer", "exec", "python", "-u", "-m", "launcher.train", "x=1"),
    ]


def test_options_of_a_container_mean_nothing_outside_of_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "gpt2", "--sizes", "1", "--weak", "--before-python=apptainer"]) == 2
    assert "this is no job of Slurm" in capsys.readouterr().err
