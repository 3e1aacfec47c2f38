"""A checkpoint that DeepSpeed wrote is taken over once, and the run goes on from it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import engine_jobs
import jobs
import pytest
import tiny
import torch
from ranks import run_ranks
from transformers import GPT2Config, GPT2LMHeadModel

from launcher import cli
from launcher.checkpoint.deepspeed_files import DeepSpeedCheckpoint
from launcher.engine.records import read_metrics
from launcher.errors import CheckpointError


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "batch_digest" in line]


def words(shards: Path, runs: Path, name: str, stage: int, **changes: Any) -> list[str]:
    tree = tiny.recipe_tree("clm", shards, runs, name=name, train__num_steps=6, schedule__kind="constant", **changes)
    path = tiny.write_recipe(runs / f"{name}.yaml", tree)
    return ["--ds_config", f"zero{stage}", "--recipe", str(path)]


@pytest.mark.parametrize(
    ("stage", "universal"),
    [
        (1, False),
        (2, False),
        (3, False),
        pytest.param(2, True, marks=pytest.mark.slow),
    ],  # its converter is slow
)
def test_a_run_goes_on_where_deepspeeds_own_checkpoint_stopped(
    stage: int, universal: bool, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "theirs"
    whole = run_ranks(
        engine_jobs.train_and_save_as_deepspeed, 2, words(shards, tmp_path, "whole", stage), 3, str(saved)
    )[0]
    if universal:
        run_ranks(engine_jobs.make_universal, 1, str(saved / "global_step3"), str(saved / "global_step3_universal"))
        saved = saved / "global_step3_universal"
    arguments = words(shards, tmp_path, "ours", 2)
    assert cli.main(["checkpoints", "import", str(saved), "--recipe", arguments[-1]]) == 0
    path = tmp_path / "ours" / "checkpoints" / "step-00000003"
    assert capsys.readouterr().out.endswith(f"{path}: the run goes on from here\n")
    assert cli.main(["checkpoints", "verify", str(tmp_path / "ours")]) == 0
    state = json.loads((path / "state.json").read_text())
    assert (state["step"], state["optimizer_step"], state["cursor"]["position"]) == (3, 3, 24)
    assert run_ranks(jobs.train, 1, arguments) == [0]
    assert losses(tmp_path / "ours") == pytest.approx(whole[3:], abs=1e-5)
    assert cli.main(["checkpoints", "import", str(saved), "--recipe", arguments[-1]]) == 2
    assert "UsageError: the run has checkpoints already" in capsys.readouterr().err


def test_a_model_is_taken_over_with_the_code_that_came_with_it(shards: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(mine)
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}}
    (mine / "config.json").write_text(json.dumps(json.loads((mine / "config.json").read_text()) | own))
    (mine / "mine.py").write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class MineConfig(GPT2Config):\n    model_type = 'mine'\n"
        "class Mine(GPT2LMHeadModel):\n    config_class = MineConfig\n"
    )
    model = {"continue_from": str(mine), "trusted_code": ["mine.py"]}
    theirs, arguments = tmp_path / "theirs", words(shards, tmp_path, "ours", 1, model=model)
    run_ranks(engine_jobs.train_and_save_as_deepspeed, 1, arguments, 3, str(theirs))
    assert cli.main(["checkpoints", "import", str(theirs), "--recipe", arguments[-1]]) == 0
    taken = tmp_path / "ours" / "checkpoints" / "step-00000003"
    assert (taken / "mine.py").read_text() == (mine / "mine.py").read_text()
    assert run_ranks(jobs.train, 1, arguments) == [0]


class Trap:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def make_theirs(folder: Path, **changes: Any) -> Path:
    """A folder that looks like a stage-2 checkpoint of one rank."""
    tag = folder / "global_step1"
    tag.mkdir(parents=True)
    (folder / "latest").write_text("global_step1")
    model = {"module": {}, "buffer_names": [], "global_steps": 1, "skipped_steps": 0, "ds_config": {}}
    torch.save(model, tag / "mp_rank_00_model_states.pt")
    state = {"partition_count": [1], "param_slice_mappings": [], "loss_scaler": None, **changes}
    torch.save({"optimizer_state_dict": state}, tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return tag


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    tag = make_theirs(tmp_path / "theirs", overflow=Trap(mark))
    with pytest.raises(CheckpointError, match=r"the file is refused: it asks for (posix|os)\.mkdir") as told:
        DeepSpeedCheckpoint(tmp_path / "theirs")
    assert told.value.where == str(tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert not mark.exists()
    (tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(CheckpointError, match="the file cannot be read"):  # no archive of torch's
        DeepSpeedCheckpoint(tag)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no folder", "there is no checkpoint of DeepSpeed's here"),
        ("no optimizer", "it holds no partitioned optimizer state: at stage 0 DeepSpeed does not tell which moments"),
        ("a rank is missing", "there are optimizer files of 1 ranks, 2 wrote it"),
        ("tensor parallel", "it was saved with tensor parallelism, which is not read here"),
        ("pipeline", "it was saved by a pipeline, which is not read here"),
        ("experts", "it was saved with expert parallelism, which is not read here"),
        ("truncated", "the file cannot be read"),
        ("other form", "its optimizer files have a form that is not known here"),
        ("other parameters", "the parameter w is missing in the checkpoint"),
    ],
)
def test_what_cannot_be_taken_over_is_told(damage: str, message: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"partition_count": [2]} if damage == "a rank is missing" else {}
    tag = make_theirs(tmp_path, **changes)
    optimizer = tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    if damage == "no folder":
        tag = tmp_path / "none"
    elif damage == "no optimizer":
        optimizer.unlink()
    elif damage in ("tensor parallel", "pipeline", "experts"):
        names = {
            "tensor parallel": "zero_pp_rank_0_mp_rank_01_optim_states.pt",
            "pipeline": "layer_01-model_states.pt",
            "experts": "layer_0_expert_0_mp_rank_00_model_states.pt",
        }
        (tag / names[damage]).write_bytes(b"")
    elif damage == "truncated":
        optimizer.write_bytes(optimizer.read_bytes()[:-40])
    elif damage == "other form":
        torch.save({"optimizer_state_dict": {"partition_count": 1}}, optimizer)
    with pytest.raises(CheckpointError, match=message):
        list(DeepSpeedCheckpoint(tag).tensors({"w": (2, 2)}, set()))
