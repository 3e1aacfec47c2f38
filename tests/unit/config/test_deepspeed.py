"""DeepSpeed's JSON: what ships is sound, what contradicts the recipe is refused."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from launcher.config import deepspeed, places
from launcher.config.batch import plan_batch
from launcher.config.deepspeed import load_ds_config, offloads_optimizer, resolve_ds_config, swap_folders, zero_stage
from launcher.config.loading import load_recipe
from launcher.config.recipe import Recipe
from launcher.errors import DsConfigError, RecipeError

RECIPE = load_recipe("law-bert-zh").recipe
PLAN = plan_batch(16, 4, 2)
NVME = {"device": "nvme", "nvme_path": "/n"}
SHIPPED = places.names("ds_configs", ".json")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_say_what_their_names_say_and_resolve(name: str) -> None:
    file = load_ds_config(name)
    assert file == load_ds_config(f"{name}.json")
    resolved = resolve_ds_config(file, RECIPE, plan_batch(16, 1, 8), "fp32")
    assert zero_stage(resolved) == int(name.removeprefix("zero")[0])
    assert offloads_optimizer(resolved) == ("offload" in name or "nvme" in name)
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [resolved[key] for key in keys] == [16, 1, 2]
    assert "auto" not in json.dumps(resolved)


@pytest.mark.parametrize(
    ("precision", "key"), [("bf16", "bf16"), ("fp16", "fp16"), ("bf16_autocast", "torch_autocast"), ("fp32", None)]
)
def test_the_recipe_decides_the_precision(precision: str, key: str | None) -> None:
    resolved = resolve_ds_config({}, RECIPE, PLAN, precision)
    found = [name for name in ("bf16", "fp16", "torch_autocast") if resolved.get(name, {}).get("enabled")]
    assert found == ([key] if key else [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimisation": {"stage": 3}}, "did you mean 'zero_optimization'?"),
        ({"gradient_clip": 1.0}, "did you mean 'gradient_clipping'?"),
        ({"zero_optimization": {"stage": "2"}}, 'zero_optimization.stage is "2"'),
        ({"zero_optimization": {"stage": 4}}, "use one of: 0, 1, 2, 3"),
        ({"zero_optimization": 3}, "write an object"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param needs stage 3"),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer needs stage 1",
        ),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, "nvme needs a nvme_path"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "nvme needs a nvme_path"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/n"}}},
            "at stage 2 DeepSpeed keeps the state in the host's memory",
        ),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {**NVME, "buffer_count": 3}}}, "AdamW needs 4"),
        ({"zero_optimization": {"stage": 3, "offload_param": NVME}}, "needs stage3_max_reuse_distance 0"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {**NVME, "pipeline_read": True}}},
            "buffer_count is 4, AdamW needs 8 with pipelining",
        ),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "disk"}}}, 'use one of: "none", "cpu"'),
        ([1], "a DeepSpeed configuration is a JSON object"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "write an object"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket": 5}}, "did you mean 'reduce_bucket_size'?"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}}, "did you mean 'device'?"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, "delete ratio"),
        ({"gradient_clipping": -1}, "use at least 0, which clips nothing"),
        ({"zero_optimization": {"stage": True}}, "use one of: 0, 1, 2, 3"),
        ({"zero_optimization": {"stage": [2]}}, "use one of: 0, 1, 2, 3"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}, "which DeepSpeed drops without a word"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 0}}, "use more than 0"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 0.5}}, "write a whole number"),
        ({"zero_optimization": {"stage": 2, "overlap_comm": "yes"}}, "write true or false"),
        ({"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 8}}, "zero_hpz_partition_size needs stage 3"),
        ({"zero_optimization": {"stage": 1, "zero_quantized_weights": True}}, "zero_quantized_weights needs stage 3"),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "use offload_optimizer"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "has been removed"),
        ({"zero_optimization": {"stage": 2, "zenflow": {}}}, "its state is in no checkpoint"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "a gradient that is no number"),
        (
            {"zero_optimization": {"stage": 3, "max_live_parameters": 1, "stage3_max_live_parameters": 2}},
            "one setting with two values",
        ),
        ({"elasticity": {"enabled": True}}, "Elastic training has been removed"),
        ({"wandb": {"enabled": True}}, "writes metrics.jsonl and tensorboard/ itself"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf16 and fp16 are both enabled"),
        ({"bf16": {"enable": True}}, "did you mean 'enabled'?"),
        ({"aio": {"queue_dept": 8}}, "did you mean 'queue_depth'?"),
        ({"train_batch_size": -4}, "use a whole number from 1 on"),
        ({"train_batch_size": 10, "train_micro_batch_size_per_gpu": 4}, "is no multiple of 4 samples a pass"),
        (
            {"optimizer": {"type": "Lamb"}, "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "the optimizer Lamb cannot be offloaded",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_fix(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DsConfigError) as caught:
        load_ds_config(str(path))
    assert message in str(caught.value)
    assert "ds.json" in str(caught.value)


def test_text_that_is_not_json_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{\n "a": 1,\n}')
    with pytest.raises(DsConfigError, match="this is not JSON") as caught:
        load_ds_config(str(path))
    assert "ds.json:3" in str(caught.value)
    path.write_text('{"zero_optimization": {"stage": 1, "stage": 2}}')
    with pytest.raises(DsConfigError, match="'stage' stands twice"):
        load_ds_config(str(path))


def test_a_name_that_does_not_exist_gets_the_list() -> None:
    with pytest.raises(DsConfigError) as caught:
        load_ds_config("zero5.json")
    assert "there is no DeepSpeed configuration 'zero5.json'" in str(caught.value)
    assert "zero0, zero1, zero2" in str(caught.value)
    with pytest.raises(DsConfigError, match=r"the file cannot be read: .*File name too long"):
        load_ds_config("x" * 300)


@pytest.mark.parametrize(
    "file",
    [
        {"train_batch_size": 32},
        {"gradient_clipping": 0.5},
        {"bf16": {"enabled": True}},
        {"optimizer": {"type": "AdamW"}},
        {"scheduler": {"type": "WarmupLR"}},
        {"tensor_parallel": {"autotp_size": 2}},
    ],
)
def test_a_file_that_contradicts_the_recipe_is_refused(file: dict[str, Any]) -> None:
    with pytest.raises(DsConfigError) as caught:
        resolve_ds_config(file, RECIPE, PLAN, "fp32")
    assert "the recipe decides it" in str(caught.value)
    assert f"delete '{next(iter(file))}' from the file" in str(caught.value)


@pytest.mark.parametrize(
    "file",
    [
        {"train_batch_size": "auto"},
        {"train_batch_size": 16},
        {"bf16": {"enabled": "auto"}},
        {"fp16": {"enabled": False}},
    ],
)
def test_a_file_that_agrees_or_leaves_it_open_is_taken(file: dict[str, Any]) -> None:
    assert resolve_ds_config(file, RECIPE, PLAN, "fp32")["train_batch_size"] == 16


@pytest.mark.parametrize(
    ("ranks", "world_size", "stage", "message"),
    [
        (3, 4, 3, "a world size of 4 cannot be cut into groups of 3 ranks"),
        (2, 4, 2, "at ZeRO stage 3 only, this is stage 2"),
    ],
)
def test_experts_that_cannot_be_shared_by_these_ranks_are_refused(
    ranks: int, world_size: int, stage: int, message: str
) -> None:
    with pytest.raises(RecipeError) as told:
        resolve_ds_config(load_ds_config(f"zero{stage}"), sharing_experts(ranks), plan_batch(16, 4, world_size), "fp32")
    assert message in str(told.value)


def test_the_weights_of_a_node_are_held_once_more_only_by_whole_nodes() -> None:
    with pytest.raises(DsConfigError, match="zero_hpz_partition_size 8 does not divide the world size of 4"):
        resolve_ds_config(load_ds_config("zero3_hpz"), RECIPE, plan_batch(16, 4, 4), "fp32")


def test_every_run_swaps_to_a_folder_of_its_own() -> None:
    file = load_ds_config("zero3_nvme")
    folders = []
    for name in ("one", "two"):
        recipe = RECIPE.model_copy(update={"name": name})
        resolved = resolve_ds_config(file, recipe, PLAN, "fp32")
        (folder,) = swap_folders(resolved)
        assert folder.parent == Path("/local_nvme")
        assert folder.name.startswith(name)
        folders.append(folder)
    assert folders[0] != folders[1]
    assert swap_folders(resolve_ds_config(load_ds_config("zero3_offload"), RECIPE, PLAN, "fp32")) == []


def test_frozen_weights_are_not_put_on_nvme() -> None:
    file = {"zero_optimization": {"stage": 3, "offload_param": NVME, "stage3_max_reuse_distance": 0}}
    frozen = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update={"freeze": ("*embed*",)})})
    assert swap_folders(resolve_ds_config(file, RECIPE, PLAN, "fp32"))
    with pytest.raises(DsConfigError, match="weights that do not learn cannot lie on NVMe"):
        resolve_ds_config(file, frozen, PLAN, "fp32")


@pytest.mark.parametrize(
    ("torch", "stage", "is_refused"),
    [
        ("2.11.0+cu130", 3, True),
        ("2.11.0a0+5c0eb1d", 3, True),
        ("2.11.0", 2, False),  # no hooks
        ("2.12.0a0+5c0eb1d", 3, False),  # as containers name what will be 2.12
        ("2.13.0+cpu", 3, False),
        (None, 3, False),  # a login node
    ],
)
def test_torch_that_compiles_gradients_away_is_refused(
    torch: str | None, stage: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(package: str) -> str:
        if torch is None:
            raise PackageNotFoundError(package)
        return torch

    monkeypatch.setattr(deepspeed, "version", installed)
    compiled = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update={"compile": True})})
    file = {"zero_optimization": {"stage": stage}}
    resolve_ds_config(file, RECIPE, PLAN, "fp32")
    refusal = pytest.raises(DsConfigError, match=f"torch {re.escape(str(torch))} compiles")
    with refusal if is_refused else nullcontext():
        resolve_ds_config(file, compiled, PLAN, "fp32")


def test_experts_are_shared_as_the_recipe_says() -> None:
    resolved = resolve_ds_config(load_ds_config("zero3"), sharing_experts(2), plan_batch(16, 4, 4), "fp32")
    assert resolved["expert_parallel"] == {"enabled": True, "autoep_size": 2}
    with pytest.raises(DsConfigError, match=r"model\.expert_parallel"):
        resolve_ds_config({"expert_parallel": {"enabled": True, "autoep_size": 4}}, RECIPE, PLAN, "fp32")


def sharing_experts(ranks: int) -> Recipe:
    return RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update={"expert_parallel": ranks})})
