"""What a rank's tensors take is what the plan says."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import jobs
import pytest
import tiny
from ranks import run_ranks

from launcher.plan.memory import state_bytes

LLAMA = {
    "family": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 64,
}
PERSISTENT = 100_000  # zero3.json's stage3_param_persistence_threshold
BUCKET = 50_000_000  # and its reduce_bucket_size


QUICK = {("fp32", 0, 2), ("fp32", 2, 2), ("fp32", 3, 2), ("bf16", 1, 2), ("bf16", 2, 1), ("bf16", 3, 2)}


@pytest.mark.parametrize(
    ("precision", "stage", "ranks"),
    [
        pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.slow)
        for cell in product(("fp32", "bf16"), range(4), (1, 2))
        if cell[2] == 2 or cell[1] == 2
    ],
)
def test_tensors_take_what_the_formula_says(
    precision: str, stage: int, ranks: int, shards: Path, tmp_path: Path
) -> None:
    tree = tiny.recipe_tree("clm", shards, tmp_path, train__precision=precision, model=LLAMA)
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    for sizes, amid, between in run_ranks(jobs.held, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(recipe)]):
        expected = state_bytes(
            sum(sizes),
            stage=stage,
            world_size=ranks,
            weight_bytes=2 if precision == "bf16" else 4,
            persistent_parameters=sum(size for size in sizes if size < PERSISTENT),
            reduce_bucket=BUCKET,
        )
        for field in ("parameters", "gradients", "optimizer"):
            assert amid[field] == pytest.approx(getattr(expected, field), rel=0.05), field
        assert sum(amid.values()) == pytest.approx(expected.total, rel=0.05)
        assert between["optimizer"] == amid["optimizer"]
        assert stage == 3 or between["gradients"] == 0
