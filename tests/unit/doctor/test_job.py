"""`pretrain doctor RECIPE` finds before the queue what the run would find behind it."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from checkpoints import make_checkpoint
from safetensors.numpy import save_file

from launcher import cli, units
from launcher.config.loading import load_recipe, resolved_yaml
from launcher.doctor import space
from launcher.doctor.findings import Finding
from launcher.doctor.job import Job, look_at_job
from launcher.shards.manifest import read_manifest


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_shards(tmp_path_factory.mktemp("shards"))


def look(folder: Path, shards: Path, job: dict[str, Any] | None = None, **changes: Any) -> dict[str, Finding]:
    recipe = tiny.write_recipe(folder / "r.yaml", tiny.recipe_tree("mlm", shards, folder / "runs", **changes))
    findings = list(look_at_job(Job(recipe=str(recipe), **(job or {})), {}))
    return {finding.name: finding for finding in findings}


def test_a_job_that_fits_is_told_with_its_numbers(tmp_path: Path, shards: Path) -> None:
    found = look(tmp_path, shards, {"ds_config": "zero2.json", "ranks": 4})
    assert {name for name, finding in found.items() if finding.state == "wrong"} == set()
    assert found["batch"].found == "8 sequences (192 tokens) a step = 4 ranks x 2 a pass x 1 passes"
    assert found["ds_config"].found.endswith("zero2.json: ZeRO stage 2")
    assert "times all" in found["shards"].found
    assert "parameters" in found["model"].found
    assert "2 checkpoints, one being written and the export" in found["disk"].found


@pytest.mark.parametrize(
    ("job", "changes", "name", "told", "fix"),
    [
        ({"ranks": 3}, {}, "batch", "cannot be cut into 3 equal shares", "use 6 or 9"),
        ({}, {}, "batch", "not known", "--ranks N"),
        ({"ds_config": "zero9"}, {}, "ds_config", "there is no DeepSpeed configuration", "use a path"),
        ({}, {"data__tokenizer": "OTHER"}, "tokenizer", "is not the one the shards were made with", "prepare"),
        ({}, {"objective": {"kind": "clm", "fim_share": 0.5}}, "objective", "needs the tokens", "fim_share=0"),
        ({}, {"model__liger": True}, "liger-kernel", "model.liger=true", "pip install liger-kernel"),
        ({}, {"schedule__warmup_steps": 99}, "recipe", "is longer than the run", "pretrain recipe"),
        ({"ds_config": "zero3_hpz", "ranks": 1}, {}, "ds_config", "does not divide the world size", "ranks on a node"),
    ],
)
def test_what_does_not_fit_is_told_with_its_fix(
    job: dict[str, Any],
    changes: dict[str, Any],
    name: str,
    told: str,
    fix: str,
    tmp_path: Path,
    shards: Path,
) -> None:
    if changes.get("data__tokenizer") == "OTHER":
        other = tmp_path / "other"
        shutil.copytree(shards / "tokenizer", other)
        vocabulary = json.loads((other / "tokenizer.json").read_text())
        vocabulary["model"]["vocab"]["another"] = len(vocabulary["model"]["vocab"])
        (other / "tokenizer.json").write_text(json.dumps(vocabulary))
        changes = {"data__tokenizer": str(other)}
    finding = look(tmp_path, shards, job, **changes)[name]
    assert finding.state in ("wrong", "note")
    assert told in finding.found
    assert fix in finding.fix


def test_a_file_of_the_shards_that_was_cut_short_is_named(tmp_path: Path, shards: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    victim = next(copy.glob("*.bin"))
    victim.write_bytes(victim.read_bytes()[:-2])
    found = look(tmp_path, copy)["shards"]
    assert (found.state, str(victim) in found.found) == ("wrong", True)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"exclude": "nothing.txt"}, "the list of documents cannot be read"),
        ({"mixture": {"law": 1.0, "wiki": 1.0e-9}}, "'wiki' would get 1.0e-09 of the samples"),
    ],
)
def test_lists_and_weights_that_the_run_would_refuse_are_told(
    section: dict[str, Any], told: str, tmp_path: Path, shards: Path
) -> None:
    if "mixture" in section:
        folders = {name: {"shards": str(shards), "weight": weight} for name, weight in section["mixture"].items()}
        section = {"mixture": folders, "shards": None}
    changes = {f"data__{field}": value for field, value in section.items()}
    finding = look(tmp_path, shards, **changes)["data"]
    assert finding.state == "wrong"
    assert told in finding.found
    assert "data" not in look(tmp_path, shards)


def test_a_disk_or_a_limit_that_is_too_small_is_told(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 128))
    found = look(tmp_path, shards)
    assert (found["disk"].state, "checkpoint.keep_last" in found["disk"].fix) == ("wrong", True)
    assert (found["open files"].state, "hard limit" in found["open files"].fix) == ("wrong", True)


def test_what_a_rank_holds_is_held_against_its_device(tmp_path: Path, shards: Path) -> None:
    tree = tiny.recipe_tree("mlm", shards, tmp_path / "runs")
    job = Job(recipe=str(tiny.write_recipe(tmp_path / "r.yaml", tree)), ds_config="zero0", ranks=2)
    for device_bytes, state in ((1 << 30, "ok"), (1000, "note")):
        found = {finding.name: finding for finding in look_at_job(job, {}, device_bytes)}["memory"]
        assert (found.state, "and activations besides; an accelerator here has" in found.found) == (state, True)


def test_ranks_that_share_matrices_hold_tables_whole_and_all_of_a_model_while_it_is_read(
    tmp_path: Path, shards: Path
) -> None:
    width, inner, vocab_size = 32, 64, read_manifest(shards).tokenizer.vocab_size
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": inner}
    tree = tiny.recipe_tree("clm", shards, tmp_path / "runs", train__precision="fp32")
    tree["model"] = {"family": "llama", **sizes, "tensor_parallel": 2}
    job = Job(recipe=str(tiny.write_recipe(tmp_path / "r.yaml", tree)), ds_config="zero0", ranks=2)
    tables, layer = 2 * vocab_size * width, 4 * width**2 + 3 * width * inner
    held = 4 * (tables + layer // 2)
    found = {finding.name: finding for finding in look_at_job(job, {}, device_bytes=1 << 30)}["memory"]
    assert f"(parameters {units.size(held)}, gradients {units.size(held)}" in found.found
    assert "while the whole model" not in found.found  # it is drawn matrix by matrix
    stored = {"embed.weight": np.zeros(tables, np.float32), "layers.0.weight": np.zeros(layer, np.float32)}
    (tmp_path / "trained").mkdir()
    save_file(stored, tmp_path / "trained" / "model.safetensors")
    (tmp_path / "trained" / "config.json").write_text('{"model_type": "llama"}')
    tree["model"] = {"continue_from": str(tmp_path / "trained"), "tensor_parallel": 2}
    job = Job(recipe=str(tiny.write_recipe(tmp_path / "r.yaml", tree)), ds_config="zero0", ranks=2)
    found = {finding.name: finding for finding in look_at_job(job, {}, device_bytes=1 << 30)}["memory"]
    assert f"(parameters {units.size(held)}, gradients {units.size(held)}" in found.found
    assert f"({units.size(4 * (tables + layer))} while the whole model is read)" in found.found


@pytest.mark.parametrize(("ranks", "passes"), [(2, 2), (4, 1)])
def test_tables_count_for_each_rank_that_shares_matrices_where_the_optimizer_is_offloaded(
    ranks: int, passes: int, tmp_path: Path, shards: Path
) -> None:
    width, inner, vocab_size = 32, 64, read_manifest(shards).tokenizer.vocab_size
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": inner}
    tree = tiny.recipe_tree("clm", shards, tmp_path / "runs", train__precision="fp32")
    tree["model"] = {"family": "llama", **sizes, "tensor_parallel": 2}
    tree["batch"] = {"global_batch": 4, "micro_batch": 2}
    job = Job(recipe=str(tiny.write_recipe(tmp_path / "r.yaml", tree)), ds_config="zero2_offload", ranks=ranks)
    tables, layer = 2 * vocab_size * width, 4 * width**2 + 3 * width * inner
    told = {finding.name: finding for finding in look_at_job(job, {})}["host memory"].found
    of_parameter = 16 + (4 if passes > 1 else 0)  # the gradients of several passes are added up beside the optimizer's
    assert f"takes {units.size(of_parameter * 2 * (tables + layer // 2))} of a node's" in told


def test_offload_is_held_against_memory_and_compilers(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "memory", lambda: space.Memory(total_bytes=1000, free_bytes=1000))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    found = look(tmp_path, shards, {"ds_config": "zero3_offload", "ranks": 2})
    assert (found["host memory"].state, "more nodes" in found["host memory"].fix) == ("note", True)
    assert (found["cpu_adam"].state, "torch's AdamW" in found["cpu_adam"].found) == ("note", True)
    found = look(tmp_path, shards, {"ds_config": "zero3_nvme", "ranks": 2})
    assert "there is no folder /local_nvme on this machine" in found["nvme"].found
    assert (found["compiled ops"].state, "offload to cpu" in found["compiled ops"].fix) == ("wrong", True)


def test_what_a_run_left_is_held_against_the_recipe(tmp_path: Path, shards: Path) -> None:
    assert "run" not in look(tmp_path, shards)
    loaded = load_recipe(str(tmp_path / "r.yaml"))
    path = make_checkpoint(loaded.recipe.run_folder / "checkpoints", 3)
    (path / "recipe.yaml").write_text(resolved_yaml(loaded.recipe))
    assert look(tmp_path, shards)["run"].found == f"goes on from {path} of 20 steps"
    changed = look(tmp_path, shards, optim__lr=0.5)["run"]
    assert (changed.state, "optim.lr" in changed.found, "name=…" in changed.fix) == ("wrong", True, True)
    (path / "rank-00000.safetensors").unlink()
    assert "no checkpoint is left that is not damaged" in look(tmp_path, shards)["run"].found


def test_a_hostfile_tells_ranks_and_nodes(tmp_path: Path, shards: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("nowhere.invalid slots=2\nb.invalid slots=2\n")
    assert "= 4 ranks x 2" in look(tmp_path, shards, {"hostfile": hosts})["batch"].found
    assert "nowhere.invalid resolves to no address" in look(tmp_path, shards, {"hostfile": hosts})["hostfile"].found
    hosts.write_text("a slots=2\na slots=2\n")
    assert "the host a stands twice" in look(tmp_path, shards, {"hostfile": hosts})["hostfile"].found


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nodes", "2"], "--nodes alone"),
        (["--nodes", "4", "--ranks", "2"], "2 ranks on 4 nodes"),
        (["--hostfile", "h", "--ranks", "2"], "a hostfile says how many"),
    ],
)
def test_numbers_that_cannot_be_are_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "law-bert-zh", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_recipe_that_cannot_be_read_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "law-bert-zh", "train.num_stepz=3", "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)["findings"]
    (recipe,) = [finding for finding in findings if finding["name"] == "recipe"]
    assert "did you mean 'num_steps'" in recipe["fix"]
