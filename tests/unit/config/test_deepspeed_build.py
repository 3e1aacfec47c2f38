"""`pretrain ds-config`: what it builds passes its own check, says why, and is what ships."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher import cli
from launcher.config import places
from launcher.config.deepspeed import load_ds_config
from launcher.config.deepspeed_build import BUCKET, as_json, build_ds_config
from launcher.config.deepspeed_check import LEAST_SWAPPED, check_ds_config
from launcher.config.deepspeed_choices import DsChoices
from launcher.config.deepspeed_offload import NVME_GROUP, SUB_GROUPS

SHIPPED: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
    "zero2_offload": {"stage": 2, "offload_optimizer": "cpu"},
    "zero3_offload": {"stage": 3, "offload_optimizer": "cpu"},
    "zero3_offload_all": {"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
    "zero3_nvme": {"stage": 3, "offload_optimizer": "nvme", "nvme_path": "/local_nvme"},
    "zero3_hpz": {"stage": 3, "hpz": 8},
}


def value_of(choices: dict[str, Any], key: str) -> Any:
    (setting,) = [setting for setting in build_ds_config(DsChoices(**choices)) if setting.key.endswith(key)]
    return setting.value


def on_nvme(sub_group_size: int | None = 10**6) -> dict[str, Any]:
    zero = {"stage": 3, "reduce_bucket_size": 9, "offload_optimizer": {"device": "nvme", "nvme_path": "/n"}}
    return {"zero_optimization": zero if sub_group_size is None else {**zero, "sub_group_size": sub_group_size}}


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_what_the_builder_builds(name: str) -> None:
    config = as_json(build_ds_config(DsChoices(**SHIPPED[name])))
    assert json.loads((places.shipped("ds_configs") / f"{name}.json").read_text()) == config
    assert check_ds_config(config, name) == []
    assert cli.main(["ds-config", "--check", name]) == 0


def test_every_shipped_file_has_its_choices() -> None:
    assert set(places.names("ds_configs", ".json")) == SHIPPED.keys()


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("num_parameters", [None, 1_000, 110_000_000, 7_000_000_000, 10**12])
@pytest.mark.parametrize("precision", [None, "fp32", "bf16", "fp16", "bf16_autocast"])
@pytest.mark.parametrize("offload", ["none", "cpu", "nvme"])
def test_whatever_is_built_is_sound(stage: Any, num_parameters: int | None, precision: Any, offload: Any) -> None:
    if offload == "nvme" and stage < 3:
        offload = "cpu"
    choices = DsChoices(
        stage=stage,
        num_parameters=num_parameters,
        precision=precision,
        offload_optimizer=offload if stage else "none",
        offload_param=offload if stage == 3 else "none",
        nvme_path="/nvme" if offload == "nvme" else None,
        global_batch=64,
        micro_batch=4,
        grad_accum_steps=2,
        grad_clip=1.0,
    )
    settings = build_ds_config(choices)
    assert check_ds_config(as_json(settings), "built") == []
    for setting in settings:
        assert setting.why
        assert setting.meaning
        assert setting.memory
        assert setting.origin in ("given", "derived", "default")


def test_sizes_follow_from_the_model_unless_given() -> None:
    assert value_of({"stage": 2}, ".reduce_bucket_size") == BUCKET
    assert value_of({"stage": 2, "num_parameters": 160_000_000}, ".reduce_bucket_size") == 10_000_000
    assert value_of({"stage": 2, "num_parameters": 160_000_000, "bucket_size": 7}, ".reduce_bucket_size") == 7
    groups = {"stage": 3, "offload_optimizer": "cpu", "num_parameters": 110_000_000}
    assert value_of(groups, ".sub_group_size") == 110_000_000 // SUB_GROUPS


def gpt2() -> list[int]:
    """Sizes of the parameters of GPT-2 (124M): a third of them in one."""
    width = 768
    layer = [3 * width**2, width**2, 4 * width**2, 4 * width**2]
    return [50257 * width, 1024 * width, *(layer * 12)]


def llama() -> list[int]:
    """Sizes of the parameters of a Llama of 107M."""
    width = 768
    layer = [width**2] * 4 + [4 * width**2] * 3
    return [8192 * width, *(layer * 10), 8192 * width]


@pytest.mark.parametrize("sizes", [gpt2(), llama()], ids=["gpt2", "llama"])
@pytest.mark.parametrize(("is_known", "ranks"), [(False, 1), (False, 2), (True, 1), (True, 2), (True, 8), (True, 16)])
def test_deepspeed_cuts_at_least_sixteen_groups_of_a_hundred_million_parameters(
    is_known: bool, sizes: list[int], ranks: int
) -> None:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    nvme = {"stage": 3, "offload_optimizer": "nvme", "nvme_path": "/nvme"}
    numbers = {"num_parameters": sum(sizes), "num_ranks": ranks} if is_known else {}
    optimizer = SimpleNamespace(sub_group_size=value_of({**nvme, **numbers}, ".sub_group_size"))
    parameters = [SimpleNamespace(partition_numel=lambda size=size: size // ranks) for size in sizes]
    assert len(DeepSpeedZeroOptimizer_Stage3._create_fp16_sub_groups(optimizer, parameters)) >= 16


def test_groups_on_nvme_are_large_enough_to_reach_it() -> None:
    nvme = {"stage": 3, "offload_optimizer": "nvme", "nvme_path": "/nvme"}
    assert value_of({**nvme, "num_parameters": 1000}, ".sub_group_size") * 4 >= LEAST_SWAPPED
    assert value_of({**nvme, "num_parameters": 1000, "aio_block_size": 1 << 23}, ".sub_group_size") * 4 == 1 << 23
    assert value_of({**nvme, "offload_param": "nvme", "num_parameters": 3000}, ".offload_param.buffer_size") == 3000


def test_asynchronous_io_is_as_asked_for() -> None:
    nvme = {"stage": 3, "offload_optimizer": "nvme", "nvme_path": "/nvme"}
    asked = {"aio_block_size": 2**23, "aio_queue_depth": 32, "aio_threads": 4}
    aio = as_json(build_ds_config(DsChoices(**nvme, **asked)))["aio"]
    assert aio == {"block_size": 2**23, "queue_depth": 32, "intra_op_parallelism": 4, "single_submit": False,
                   "overlap_events": True}  # fmt: skip


def test_a_file_that_offloads_to_another_drive_keeps_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    before = load_ds_config("zero3_nvme")
    assert cli.main(["ds-config", "--from", "zero3_nvme", "--nvme-path", "/scratch", "--no-pin-memory"]) == 0
    changed = json.loads(capsys.readouterr().out)
    block = before["zero_optimization"]["offload_optimizer"]
    block |= {"nvme_path": "/scratch", "pin_memory": False}
    assert changed == before
    assert changed["zero_optimization"]["sub_group_size"] == NVME_GROUP


def test_the_command_builds_explains_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ds.json"
    words = ["ds-config", "--stage", "3", "--offload-optimizer", "cpu", "--parameters", "7B", "--explain"]
    assert cli.main([*words, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert 'zero_optimization.offload_optimizer.device = "cpu"' in told
    assert "origin   derived: 1/32 of 7000000000 parameters on 1 ranks" in told
    assert load_ds_config(str(out))["zero_optimization"]["stage"] == 3
    assert cli.main([*words, "--out", str(out)]) == 2
    assert "the file is there already" in capsys.readouterr().err
    assert cli.main([*words, "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert {"key", "value", "origin", "why", "meaning", "memory"} == settings[0].keys()


def test_every_key_of_a_changed_file_is_explained_with_where_it_is_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ds-config", "--from", "zero3", "--offload-optimizer", "cpu", "--explain", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    origins = {setting["key"].removeprefix("zero_optimization."): setting["origin"] for setting in settings}
    assert (origins["stage"], origins["overlap_comm"]) == ("file", "file")
    assert origins["offload_optimizer.device"] == "given"
    assert len(settings) == len(load_ds_config("zero3")["zero_optimization"]) + 1


@pytest.mark.parametrize(
    ("option", "where"),
    [
        (["--activation-checkpointing"], "set model.activation_checkpointing in the recipe"),
        (["--checkpoint-engine", "fast"], "see checkpoint in the recipe"),
    ],
)
def test_a_choice_that_is_the_recipes_says_where_it_is_made(
    option: list[str], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ds-config", "--stage", "3", *option]) == 2
    assert where in capsys.readouterr().err


def test_a_changed_file_keeps_the_rest_and_what_is_unknown_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.json"
    before = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}, "steps_per_print": 10, "mystery": [1]}
    base.write_text(json.dumps(before))
    assert cli.main(["ds-config", "--from", str(base), "--offload-optimizer", "cpu"]) == 0
    told = capsys.readouterr()
    zero = {**before["zero_optimization"], "offload_optimizer": {"device": "cpu"}}  # type: ignore[dict-item]
    assert json.loads(told.out) == {**before, "zero_optimization": zero}
    assert "unknown key 'mystery'" in told.err


@pytest.mark.parametrize("device", ["cpu", "none"])
def test_another_device_takes_the_place_of_nvme_with_all_that_belonged_to_it(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ds-config", "--from", "zero3_nvme", "--offload-optimizer", device]) == 0
    told = capsys.readouterr()
    changed = json.loads(told.out)
    assert changed["zero_optimization"].get("offload_optimizer") == ({"device": "cpu"} if device == "cpu" else None)
    assert "aio" not in changed
    assert "sub_group_size" not in changed["zero_optimization"]
    assert told.err == ""


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (["--from", "zero2", "--stage", "0"],
         "allgather_bucket_size, contiguous_gradients, overlap_comm, reduce_bucket_size"),
        (["--from", "zero2", "--stage", "3"], "allgather_bucket_size"),
        (["--from", "zero1", "--stage", "2"], None),
    ],
)  # fmt: skip
def test_what_a_changed_file_keeps_without_effect_is_told(
    words: list[str], unused: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ds-config", *words]) == 0
    stage = words[-1]
    assert capsys.readouterr().err == (f"warning: {unused}: without effect at stage {stage}\n" if unused else "")


def test_groups_that_the_user_chose_stay_and_are_told_where_they_have_no_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.json"
    base.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": 9, "sub_group_size": 7}}))
    assert cli.main(["ds-config", "--from", str(base), "--stage", "2"]) == 0
    assert "sub_group_size: without effect at stage 2" in capsys.readouterr().err


def test_a_check_tells_what_this_machine_could_not_compile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert cli.main(["ds-config", "--check", "zero3_nvme"]) == 0
    told = capsys.readouterr()
    assert "sound" in told.out
    assert "this machine cannot compile DeepSpeed's async_io (offload to NVMe): apt-get install g++" in told.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "2", "--hpz", "8"], "--hpz needs --stage 3"),
        (["--stage", "2", "--offload-param", "cpu"], "--offload-param needs --stage 3"),
        (["--stage", "0", "--offload-optimizer", "cpu"], "--offload-optimizer needs --stage 1 or higher"),
        (["--stage", "2", "--offload-optimizer", "nvme", "--nvme-path", "/n"], "--offload-optimizer needs --stage 3"),
        (["--stage", "3", "--offload-optimizer", "nvme"], "offload to NVMe needs a folder there"),
        (["--stage", "3", "--offload-optimizer", "cpu", "--nvme-path", "/n"], "--nvme-path is for offload to NVMe"),
        (["--stage", "3", "--aio-threads", "4"], "--aio-threads is for offload to NVMe"),
        (["--stage", "0", "--bucket-size", "50M"], "--bucket-size has no effect here"),
        (["--stage", "0", "--no-overlap-comm"], "--overlap-comm has no effect here"),
        (["--stage", "2", "--sub-group-size", "5M"], "add --stage 3, or leave it out"),
        (["--stage", "3", "--pin-memory"], "add --offload-optimizer or --offload-param"),
        (["--check", "zero3", "--stage", "2"], "--check builds nothing"),
        (["--check", "zero9"], "there is no DeepSpeed configuration"),
        (
            ["--stage", "3", "--bucket-size", "500M", "--device-memory-gb", "8"],
            "the buffers of overlap_comm take 4.5 GB",
        ),
        (["--out", "nowhere/at/all.json"], "there is no such folder"),
    ],
)
def test_choices_that_cannot_be_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ds-config", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"zero_optimization": {"stage": 2}}, "reduce_bucket_size is not set"),
        ({"activation_checkpointing": {"cpu_checkpointing": True}}, "the recipe's model.activation_checkpointing"),
        ({"checkpoint": {"writer": {"type": "fast"}}}, "checkpoint: the recipe decides it"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": 9, "stage3_max_live_parameters": 9}},
            "stage3_max_live_parameters: without effect at stage 2",
        ),
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": 9, "zero_quantized_gradients": True}},
            "gradients in 4 bits",
        ),
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": 9, "zero_quantized_weights": True}},
            "gathered in 8 bits",
        ),
        (on_nvme(sub_group_size=None), "one group of most models"),
        (on_nvme(sub_group_size=1000), "groups below 1048576 bytes (4 a value) stay in memory; 262144 or more"),
        ({**on_nvme(), "aio": {"block_size": 2**30}}, "268435456 or more reach NVMe"),
        ({"zero_optimization": {"stage": 0}, "aio": {"block_size": 2**20}}, "aio: without effect"),
        (
            {"zero_optimization": {"stage": 1, "reduce_bucket_size": 9, "offload_optimizer": {"nvme_path": "/n"}}},
            "offload_optimizer.nvme_path: without effect, the device is none",
        ),
    ],
)
def test_what_is_risky_is_a_warning(config: dict[str, Any], message: str) -> None:
    (warning,) = check_ds_config(config, "here")
    assert message in warning
