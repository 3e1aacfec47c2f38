"""On a GPU as on a CPU: every run takes the steps of a plain PyTorch loop, and goes on where it was stopped."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import export_jobs
import jobs
import plain_jobs
import pytest
import tiny
import torch
from packaging.version import Version
from ranks import run_on_gpus

from launcher.engine.metrics import read_metrics
from launcher.plan.flops import peak_flops

pytestmark = pytest.mark.gpu

NUMBERS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
LLAMA: dict[str, Any] = {"family": "llama", **NUMBERS}
MODERNBERT: dict[str, Any] = {
    **NUMBERS,
    "family": "modernbert",
    "config": {"layer_types": ["full_attention", "full_attention"]},
}
MIXTRAL = {
    "family": "mixtral",
    **NUMBERS,
    "config": {"num_local_experts": 4},
    "router_aux_loss": 0.0,
    "experts": "eager",
}
APART = {"packing": "bestfit", "documents": "apart"}

# fp32 differs by the order of sums, and by the type attention kernels compute in; bf16 and fp16 have 8 and 11 bits.
IN_FP32, IN_HALF = 1e-4, 0.03


def needs(package: str) -> Any:
    """A mark: skipped, with the reason, where a package is missing."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")


def both(
    shards: Path,
    folder: Path,
    config: str,
    objective: str = "clm",
    *,
    ranks: int = 1,
    precision: str = "fp32",
    data: dict[str, Any] | None = None,
    plain: dict[str, Any] | None = None,
    **model: Any,
) -> tuple[list[float], list[float]]:
    """Losses of ten steps: of a plain loop of model `plain` in fp32, and of the engine with `model` besides."""
    tree = tiny.recipe_tree(objective, shards, folder, train__num_steps=10)
    tree["data"] |= data or {}
    tree["model"] = plain or tree["model"]
    reference = tiny.write_recipe(folder / "plain.yaml", tree)
    tree["model"] = {**tree["model"], **model}
    tree["train"]["precision"] = precision
    recipe = tiny.write_recipe(folder / "engine.yaml", tree)
    arguments = ["--ds_config", config, "--recipe", str(recipe)]
    losses: tuple[list[float], list[float]] = run_on_gpus(
        plain_jobs.plain_and_engine_losses, ranks, str(reference), arguments
    )[0]
    return losses


def largest_difference(losses: tuple[list[float], list[float]]) -> float:
    expected, got = losses
    assert len(expected) == len(got) == 10
    assert expected[0] - expected[-1] > 0.05, "a frozen model would agree with a frozen model"
    return max(abs(a - b) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize(
    ("objective", "config", "precision", "tolerance"),
    [
        ("mlm", "zero0", "fp32", IN_FP32),
        ("clm", "zero1", "fp32", IN_FP32),
        ("span", "zero2", "fp32", IN_FP32),
        ("mlm", "zero3", "fp32", IN_FP32),
        ("clm", "zero0", "bf16", IN_HALF),
        ("mlm", "zero2", "bf16", IN_HALF),
        ("span", "zero3", "bf16", IN_HALF),
        ("clm", "zero3", "bf16_autocast", IN_HALF),
        ("span", "zero0", "bf16_autocast", IN_HALF),
        ("clm", "zero2_offload", "bf16", IN_HALF),  # DeepSpeed compiles its CPU Adam
    ],
)
def test_a_run_takes_the_steps_of_a_plain_loop(
    objective: str, config: str, precision: str, tolerance: float, shards: Path, tmp_path: Path
) -> None:
    assert largest_difference(both(shards, tmp_path, config, objective, precision=precision)) < tolerance


@pytest.mark.parametrize("config", ["zero0", "zero2", "zero3"])
def test_fp16_scales_its_loss(config: str, shards: Path, tmp_path: Path) -> None:
    # The first steps may be left out until the scale fits: falling is what can be asked.
    _, losses = both(shards, tmp_path, config, precision="fp16")
    assert losses[0] - min(losses) > 0.2


@pytest.mark.parametrize(
    ("plain", "config", "precision", "data", "model"),
    [
        pytest.param(LLAMA, "zero2", "fp32", {}, {"compile": True}, id="compiled"),
        pytest.param(
            MODERNBERT,
            "zero3",
            "fp32",
            {},
            {"compile": True},
            id="compiled-partitioned",
            marks=pytest.mark.skipif(Version(torch.__version__).release < (2, 12), reason="refused: needs torch 2.12"),
        ),
        pytest.param(LLAMA, "zero3", "fp32", {}, {"chunked_loss": "on"}, id="chunked-loss"),
        pytest.param(LLAMA, "zero3", "fp32", APART, {"activation_checkpointing": 2}, id="recomputed"),
        pytest.param(LLAMA, "zero3", "fp32", APART, {"attention": "eager"}, id="eager"),
        pytest.param(LLAMA, "zero2", "fp32", APART, {"attention": "flex_attention"}, id="flex"),
        pytest.param(
            LLAMA, "zero3", "bf16", APART, {"attention": "flash_attention_2"}, id="flash", marks=needs("flash_attn")
        ),
        pytest.param(
            MODERNBERT,
            "zero2",
            "bf16_autocast",
            APART,
            {"attention": "flash_attention_2"},
            id="flash-autocast",
            marks=needs("flash_attn"),
        ),
        pytest.param(LLAMA, "zero3", "fp32", {}, {"liger": True}, id="liger", marks=needs("liger_kernel")),
        pytest.param(LLAMA, "zero2", "bf16", APART, {"liger": True}, id="liger-bf16", marks=needs("liger_kernel")),
        pytest.param(MIXTRAL, "zero3", "fp32", {}, {"experts": "auto"}, id="mixtral"),
        pytest.param(MIXTRAL, "zero2", "bf16", {}, {"experts": "auto"}, id="mixtral-bf16"),
        pytest.param(MIXTRAL, "zero0", "bf16_autocast", {}, {"experts": "auto"}, id="mixtral-autocast"),
        pytest.param(
            MIXTRAL, "zero3", "bf16", {}, {"experts": "megablocks"}, id="megablocks", marks=needs("megablocks_ops")
        ),
        pytest.param(
            MIXTRAL,
            "zero0",
            "bf16_autocast",
            {},
            {"experts": "megablocks"},
            id="megablocks-autocast",
            marks=needs("megablocks_ops"),
        ),
    ],
)
def test_no_option_changes_what_is_learnt(
    plain: dict[str, Any],
    config: str,
    precision: str,
    data: dict[str, Any],
    model: dict[str, Any],
    shards: Path,
    tmp_path: Path,
) -> None:
    objective = "mlm" if plain is MODERNBERT else "clm"
    losses = both(shards, tmp_path, config, objective, precision=precision, data=data, plain=plain, **model)
    assert largest_difference(losses) < (IN_FP32 if precision == "fp32" else IN_HALF)


@pytest.mark.parametrize(
    ("config", "plain", "model"),
    [("zero2", LLAMA, {}), ("zero3", LLAMA, {}), ("zero3", MIXTRAL, {"experts": "auto", "expert_parallel": 2})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_two_gpus_take_the_steps_of_one(
    config: str, plain: dict[str, Any], model: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    assert largest_difference(both(shards, tmp_path, config, ranks=2, plain=plain, **model)) < IN_FP32


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_a_stopped_run_goes_on_bit_for_bit_and_tells_of_its_gpu(config: str, shards: Path, tmp_path: Path) -> None:
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    seen = {}
    for name, parts in (("whole", [6]), ("stopped", [3, 6])):
        tree = tiny.recipe_tree("clm", shards, tmp_path, name=name, schedule__kind="constant", train__precision="bf16")
        tree["model"] |= {"config": dropout, "attention": "eager"}  # other kernels add up in no order
        path = tiny.write_recipe(tmp_path / f"{name}.yaml", tree)
        for last in parts:
            words = ["--ds_config", config, "--recipe", str(path), f"train.num_steps={last}"]
            assert run_on_gpus(jobs.train, 1, words) == [0]
        lines = [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "batch_digest" in line]
        seen[name] = [(line["step"], line["loss"], line["batch_digest"]) for line in lines]
        if peak_flops(torch.cuda.get_device_name()):
            assert all(line["mfu"] > 0 for line in lines), json.dumps(lines[0])
    assert seen["stopped"] == seen["whole"]
    assert len(seen["whole"]) == 6
    exports = (export_jobs.weights_file(str(tmp_path / name / "export")) for name in ("whole", "stopped"))
    assert len(set(exports)) == 1
