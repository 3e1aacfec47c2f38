"""The plain loop that runs on GPUs are held against: all it computes with lies on the device it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plain_jobs
import pytest
import tiny
import torch

LLAMA = {
    "family": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_shards(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` is a device without a machine: its tensors meet the CPU's as little as a GPU's do, and hold nothing."""
    for name, value in (("item", 1.0), ("__float__", 1.0), ("__int__", 1)):
        monkeypatch.setattr(torch.Tensor, name, lambda self, value=value: value)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros(self.shape))


@pytest.mark.parametrize(
    ("objective", "model", "apart"),
    [("mlm", {}, False), ("clm", {}, False), ("span", {}, False), ("clm", LLAMA, True)],
    ids=["mlm", "clm", "span", "documents apart"],
)
@pytest.mark.usefixtures("without_values")
def test_nothing_of_the_cpu_meets_what_is_on_the_device(
    objective: str, model: dict[str, Any], apart: bool, shards: Path, tmp_path: Path
) -> None:
    tree = tiny.recipe_tree(objective, shards, tmp_path, train__num_steps=2)
    tree["model"] = model or tree["model"]
    if apart:
        tree["data"] |= {"packing": "bestfit", "documents": "apart"}
    run = plain_jobs.plain_run(str(tiny.write_recipe(tmp_path / "r.yaml", tree)), "meta")
    assert run["losses"] == [1.0, 1.0]


def test_what_is_left_on_the_cpu_is_told() -> None:
    here, there = torch.ones(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="device"):
        torch.nn.functional.cross_entropy(here, there)
