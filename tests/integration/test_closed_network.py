"""A run needs nothing from outside: it is trained, exported and asked with every other address forbidden."""

from __future__ import annotations

from pathlib import Path

import ranks
import tiny
import wall


def test_training_reaches_nobody_outside(tmp_path: Path) -> None:
    tree = tiny.recipe_tree(
        "mlm", tiny.make_shards(tmp_path), tmp_path / "runs", train__num_steps=2, eval__prompts=["[MASK]"]
    )
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    words = ["--ds_config", "zero2.json", "--recipe", str(recipe)]
    ((code, asked),) = ranks.run_ranks(wall.train_walled_in, 1, words)
    assert (code, asked) == (0, [])
    assert (tmp_path / "runs" / "tiny" / "export" / "model.safetensors").is_file()


def test_the_wall_is_one() -> None:
    ((refused, asked),) = ranks.run_ranks(wall.reach_out_walled_in, 1)
    assert refused == 2
    assert asked == ["huggingface.co", "192.0.2.1"]
