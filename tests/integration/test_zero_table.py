"""ZeRO stage x offload x precision x accumulation x ranks: twenty steps are those of a plain PyTorch loop."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import engine_jobs
import plain_jobs
import pytest
import tiny
from ranks import run_ranks

from launcher.config.deepspeed import load_ds_config
from launcher.errors import DsConfigError

RECORD = Path(__file__).parents[1] / "golden" / "zero_table.json"
HIDDEN = 192
"""Wide enough for groups of more than 1 MiB on each of two ranks: smaller ones stay in memory."""
BOUNDS = {"fp32": 1e-5, "bf16_autocast": 5e-3, "bf16": 2e-2}
"""Largest difference of a step's loss from the fp32 loop, over twenty steps.

fp32: sums in another order. bf16 keeps eight bits, 0.4 % of a value: with autocast products are rounded and weights
are not, so that the loss is a mean over 8 x 24 scores that are off by at most 0.02 either way; bf16 weights (of fp32
masters) are rounded anew in every step besides. Measured: RECORD."""


class Cell(NamedTuple):
    stage: int
    offload: str
    precision: str
    passes: int
    ranks: int

    def __str__(self) -> str:
        return f"stage {self.stage}, offload {self.offload}, {self.precision}, passes {self.passes}, ranks {self.ranks}"


REFUSED = {
    (0, "cpu"): "offload_optimizer needs stage 1 or higher, this is stage 0",
    (0, "nvme"): "offload_optimizer needs stage 1 or higher, this is stage 0",
    (1, "nvme"): "nvme needs stage 3: at stage 1 DeepSpeed keeps the state in the host's memory",
    (2, "nvme"): "nvme needs stage 3: at stage 2 DeepSpeed keeps the state in the host's memory",
}
"""What DeepSpeed itself cannot do, whatever precision, passes and ranks: the checker says so before a run."""
ALL = [Cell(*cell) for cell in product(range(4), ("none", "cpu", "nvme"), BOUNDS, (1, 4), (1, 2))]
TABLE = [cell for cell in ALL if (cell.stage, cell.offload) not in REFUSED]


def pairs_of(cell: Cell) -> set[tuple[tuple[int, Any], ...]]:
    return set(combinations(enumerate(cell), 2))


def covering(cells: list[Cell]) -> Iterator[Cell]:
    """Cells that hold every pair of values of two columns which the table holds; each step takes the richest one."""
    missing = set().union(*(pairs_of(cell) for cell in cells))
    while missing:
        best = max(cells, key=lambda cell: len(pairs_of(cell) & missing))
        missing -= pairs_of(best)
        yield best


QUICK = set(covering(TABLE))


def test_the_subset_covers_every_pair_and_the_table_and_the_refused_are_all() -> None:
    assert len(ALL) == 144 == len(TABLE) + 12 * len(REFUSED)
    assert set().union(*map(pairs_of, QUICK)) == set().union(*map(pairs_of, TABLE))
    assert len(QUICK) <= 24


def test_the_record_holds_every_cell_within_its_bound() -> None:
    record = json.loads(RECORD.read_text())
    assert record.keys() == {str(cell) for cell in TABLE}
    for cell in TABLE:
        assert record[str(cell)]["largest_loss_difference"] < BOUNDS[cell.precision], cell
        assert record[str(cell)]["loss_fell_by"] > 0.5, "a frozen model would agree with a frozen model"


@pytest.mark.parametrize(("stage", "offload"), REFUSED)
def test_what_deepspeed_cannot_do_is_refused_with_its_reason(stage: int, offload: str, tmp_path: Path) -> None:
    with pytest.raises(DsConfigError) as told:
        load_ds_config(str(ds_file(stage, offload, tmp_path)))
    assert REFUSED[stage, offload] in str(told.value)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=[] if cell in QUICK else pytest.mark.slow, id=str(cell)) for cell in TABLE]
)
def test_twenty_steps_are_those_of_a_plain_pytorch_loop(
    cell: Cell, shards: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = wide_tree(shards, tmp_path)
    tree["train"]["precision"] = cell.precision
    tree["batch"]["micro_batch"] = tree["batch"]["global_batch"] // cell.ranks // cell.passes
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    words = ["--ds_config", str(ds_file(cell.stage, cell.offload, tmp_path)), "--recipe", str(recipe)]
    losses, *others = run_ranks(engine_jobs.step_losses, cell.ranks, words)
    assert all(other == losses for other in others)
    expected = plain_losses(shards, tmp_path_factory.getbasetemp())
    assert len(losses) == 20
    difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    if "WRITE_RECORD" in os.environ:
        write_record(cell, difference, losses[0] - losses[-1])
    assert difference < BOUNDS[cell.precision]
    assert losses[0] - losses[-1] > 0.5, "a frozen model would agree with a frozen model"


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> None:
    """What the cell needs compiled."""
    cell = request.node.callspec.params["cell"]
    for op, devices in (("cpu_adam", ("cpu", "nvme")), ("async_io", ("nvme",))):
        if cell.offload in devices:
            request.getfixturevalue(op)


def wide_tree(shards: Path, runs: Path) -> dict[str, Any]:
    tree = tiny.recipe_tree("clm", shards, runs, optim__lr=1e-3)
    tree["model"]["hidden_size"] = HIDDEN
    return tree


@cache
def plain_losses(shards: Path, folder: Path) -> list[float]:
    recipe = tiny.write_recipe(folder / "plain-wide.yaml", wide_tree(shards, folder))
    return run_ranks(plain_jobs.plain_losses, 1, str(recipe))[0]


def ds_file(stage: int, offload: str, folder: Path) -> Path:
    zero: dict[str, Any] = {"stage": stage}
    if stage:
        zero["reduce_bucket_size"] = 1_000_000
    if offload != "none":
        zero["offload_optimizer"] = {"device": offload}
    if offload == "nvme":
        (folder / "nvme").mkdir()
        zero["offload_optimizer"]["nvme_path"] = str(folder / "nvme")
        zero["sub_group_size"] = 270_000
    file = folder / "ds.json"
    file.write_text(json.dumps({"zero_optimization": zero}))
    return file


def write_record(cell: Cell, difference: float, fall: float) -> None:
    """`make test-all` keeps what it measured."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[str(cell)] = {"largest_loss_difference": float(f"{difference:.1e}"), "loss_fell_by": round(fall, 2)}
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")
