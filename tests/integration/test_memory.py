"""What a rank's tensors take is what the plan says."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import engine_jobs
import pytest
import tiny
from ranks import run_ranks

from launcher.config.loading import load_recipe
from launcher.plan.memory import kept_gradient_bytes, offloaded_bytes, parameters_of_rank, state_bytes
from launcher.plan.parameters import count_parameters, count_tables
from launcher.shards.manifest import read_manifest

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
    for sizes, amid, between in run_ranks(
        engine_jobs.held, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(recipe)]
    ):
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


@pytest.mark.parametrize(
    ("stage", "precision", "ranks", "group", "passes"),
    [
        (2, "fp32", 2, 2, 1),
        (2, "bf16", 2, 1, 2),
        (3, "fp32", 4, 2, 1),
        (3, "bf16", 2, 2, 2),
    ],
)
def test_an_offloaded_optimizer_takes_what_is_foretold_also_where_ranks_share_matrices(
    stage: int, precision: str, ranks: int, group: int, passes: int, shards: Path, tmp_path: Path
) -> None:
    """Embeddings and output layer are whole on every rank of a group."""
    model = {**LLAMA, "num_hidden_layers": 1, "intermediate_size": 256}
    batch = {"global_batch": 2 * passes * ranks // group, "micro_batch": 2}
    tree = tiny.recipe_tree("clm", shards, tmp_path, train__precision=precision, model=model, optim__host_adam="torch")
    tree["batch"] = batch
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    words = [f"model.tensor_parallel={group}"]
    told = run_ranks(engine_jobs.held, ranks, ["--ds_config", f"zero{stage}_offload", "--recipe", str(path), *words])
    counted = sum(amid["gradients"] + amid["optimizer"] for _, amid, _ in told)
    record = load_recipe(str(path), words).recipe.model
    vocab_size = read_manifest(shards).tokenizer.vocab_size
    num_parameters = count_parameters(record, vocab_size)
    assert num_parameters is not None
    of_rank = parameters_of_rank(num_parameters, count_tables(record, vocab_size), group)
    besides = kept_gradient_bytes(stage, 2 if precision == "bf16" else 4, passes)
    # The passes add up whole what lies in two ranks' parts, and norms are not counted.
    assert counted == pytest.approx(offloaded_bytes(of_rank, ranks, ranks // group, besides), rel=0.02)
