"""Every objective on every family at every ZeRO stage: twenty steps on two ranks, and the loss falls.

`make test` runs a covering subset: every pair of objective and family, of family and stage, and of objective and
stage. `make test-all` runs the whole table and writes tests/golden/cells.json.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import engine_jobs
import pytest
import tiny
from families import FAMILIES, NUMBERS, ONLY_EAGER
from ranks import run_ranks

RECORD = Path(__file__).parents[1] / "golden" / "cells.json"
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlm": ("masked", {"kind": "mlm"}),
    "clm": ("causal", {"kind": "clm"}),
    "prefix (decoder)": ("causal", {"kind": "prefix", "head": "causal"}),
    "span": ("seq2seq", {"kind": "span"}),
    "prefix": ("seq2seq", {"kind": "prefix"}),
    "ul2": ("seq2seq", {"kind": "ul2"}),
}
# Variants of an objective differ in the data alone: one family serves at each stage, another one where there are some.
VARIANTS: dict[str, tuple[tuple[str, str, str, str], dict[str, Any]]] = {
    "mlm, words": (("roberta", "electra", "deberta", "deberta-v2"), {"kind": "mlm", "unit": "word"}),
    "mlm, n-grams": (("modernbert", "roberta", "electra", "deberta"), {"kind": "mlm", "unit": "ngram"}),
    "mlm, spans": (("deberta-v2", "modernbert", "roberta", "electra"), {"kind": "mlm", "unit": "span"}),
    "mlm, next sentence": (("bert", "bert", "bert", "bert"), {"kind": "mlm", "sentence_pairs": "nsp"}),
    "mlm, sentence order": (("albert", "albert", "albert", "albert"), {"kind": "mlm", "sentence_pairs": "sop"}),
    "clm, middle filled in": (("llama", "qwen3", "gpt2", "mixtral"), {"kind": "clm", "fim_share": 0.5}),
    "mixture": (
        ("gpt_neox", "olmo", "mistral", "llama"),
        {"kind": "mixture", "parts": [{"kind": "clm"}, {"kind": "prefix", "head": "causal"}]},
    ),
}
STAGES = range(4)
LEAST_FALL = 0.2
"""Nats, from the mean of the first four steps to that of the last four."""
Cell = tuple[str, str, int]
CONFIGS = {family: (head, config) for head, family, config in FAMILIES}
TABLE: list[Cell] = [
    *((name, family, stage) for name, (head, _) in OBJECTIVES.items() for family in CONFIGS
      if CONFIGS[family][0] == head for stage in STAGES),
    *((name, family, stage) for name, (families, _) in VARIANTS.items() for stage, family in enumerate(families)),
]  # fmt: skip


def covering(cells: list[Cell]) -> list[Cell]:
    """Few of the cells in which every pair of values of two axes stands that stands in some cell.

    Greedy, variants first, which have the least choice: 78 cells, the fewest there can be, since every family stands at
    every stage (76), and of BERT and ALBERT the plain objective besides the pairs at all stages.
    """

    def pairs(cell: Cell) -> set[Any]:
        return set(combinations(enumerate(cell), 2))

    left = set().union(*(pairs(cell) for cell in cells))
    chosen = []
    while left:
        best = max(reversed(cells), key=lambda cell: len(pairs(cell) & left))
        chosen.append(best)
        left -= pairs(best)
    return chosen


COVERING = covering(TABLE)


@pytest.fixture(scope="session")
def rich_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that serve every objective: words and sentences are told, and the tokenizer has every special token."""
    return tiny.make_shards(tmp_path_factory.mktemp("rich"), kind="bpe", words=True, sentences=True)


def recipe_of(cell: Cell, shards: Path, runs: Path) -> dict[str, Any]:
    name, family, stage = cell
    section = OBJECTIVES[name][1] if name in OBJECTIVES else VARIANTS[name][1]
    attention = "eager" if family in ONLY_EAGER else "sdpa"
    model = {"family": family, "attention": attention, **NUMBERS, "config": CONFIGS[family][1]}
    tree = tiny.recipe_tree("clm", shards, runs, objective=section, model=model)
    # A fourth axis for nothing: documents of a row see each other in half of the cells. (A pair is a row of its own.)
    if (len(name) + len(family) + stage) % 2 and "sentence_pairs" not in section:
        tree["data"] |= {"packing": "bestfit", "documents": "apart"}
    return tree


def as_cells() -> list[Any]:
    """The whole table, what lies outside of the covering subset marked slow."""
    return [pytest.param(cell, marks=() if cell in COVERING else pytest.mark.slow, id=", ".join(map(str, cell)))
            for cell in TABLE]  # fmt: skip


@pytest.mark.parametrize("cell", as_cells())
def test_the_loss_of_a_cell_falls(cell: Cell, rich_shards: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r.yaml", recipe_of(cell, rich_shards, tmp_path))
    losses, others = run_ranks(engine_jobs.step_losses, 2, ["--ds_config", f"zero{cell[2]}", "--recipe", str(recipe)])
    assert len(losses) == 20
    assert losses == others
    before, after = mean(losses[:4]), mean(losses[-4:])
    if "WRITE_RECORD" in os.environ:
        write_record(cell, before, after)
    assert before - after > LEAST_FALL


@cache
def commit() -> str:
    """The commit that is measured."""
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=RECORD.parent).stdout.strip()


def write_record(cell: Cell, before: float, after: float) -> None:
    """`make test-all` keeps what it measured."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    names = {", ".join(map(str, each)) for each in TABLE}
    record = {name: measured for name, measured in record.items() if name in names}
    record[", ".join(map(str, cell))] = {"loss": [round(before, 3), round(after, 3)], "commit": commit()}
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")


def test_the_record_holds_every_cell_and_the_subset_covers_every_pair() -> None:
    record = json.loads(RECORD.read_text())
    assert sorted(record) == sorted(", ".join(map(str, cell)) for cell in TABLE)
    assert all(before - after > LEAST_FALL for before, after in (cell["loss"] for cell in record.values()))
    assert len(COVERING) == 78
    assert {name for name, _, _ in COVERING} == {*OBJECTIVES, *VARIANTS}
    assert {family for _, family, _ in COVERING} == set(CONFIGS)
