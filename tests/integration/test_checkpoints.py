"""What is in a checkpoint, how it comes into being beside training, and what happens when it cannot, or is damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
import torch
import troubled_jobs
from checkpoints import describe_file, flip
from ranks import Life, run_ranks
from safetensors.torch import load_file

from launcher.checkpoint import folder as layout
from launcher.checkpoint.folder import complete_steps
from launcher.engine.records import read_metrics


def words(shards: Path, runs: Path, stage: int = 1, /, **changes: Any) -> list[str]:
    """The arguments of a run."""
    tree = tiny.recipe_tree("mlm", shards, runs, **changes)
    path = tiny.write_recipe(runs / f"{tree['name']}.yaml", tree)
    return ["--ds_config", f"zero{stage}", "--recipe", str(path)]


def step_lines(run: Path) -> list[tuple[int, float, str]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [(x["step"], x["loss"], x["batch_digest"]) for x in lines if "batch_digest" in x]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if line.get("event") == kind]


def damage(file: Path, how: str) -> None:
    if how == "flip":
        flip(file, file.stat().st_size // 2)
    elif how == "truncate":
        file.write_bytes(file.read_bytes()[:-7])
    elif how == "delete":
        file.unlink()


@pytest.fixture(scope="module")
def four_steps(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs' folder of two ranks that took four steps at stage 3."""
    runs = tmp_path_factory.mktemp("four-steps")
    changes = {"checkpoint__every_steps": 2, "schedule__kind": "constant"}
    assert run_ranks(jobs.train, 2, [*words(shards, runs, 3, **changes), "train.num_steps=4"]) == [0, 0]
    return runs


@pytest.mark.parametrize(
    ("name", "how", "told"),
    [
        ("rank-00001.safetensors", "flip", "rank-00001.safetensors: the file's bytes are not those that were written"),
        ("rank-00001.json", "delete", "rank-00001.json: a file of the checkpoint is missing"),
        ("manifest.json", "truncate", "manifest.json: the file cannot be read"),
    ],
)
def test_a_run_goes_on_from_the_newest_sound_checkpoint_and_says_what_it_skipped(
    name: str, how: str, told: str, four_steps: Path, shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(four_steps, tmp_path, dirs_exist_ok=True)
    arguments = words(shards, tmp_path, 3, checkpoint__every_steps=2, schedule__kind="constant")
    before = step_lines(tmp_path / "tiny")
    checkpoints = tmp_path / "tiny" / "checkpoints"
    assert (checkpoints / "latest").read_text() == "step-00000004\n"
    damage(checkpoints / "step-00000004" / name, how)
    results = run_ranks(jobs.train_aloud, 2, [*arguments, "train.num_steps=6"])
    assert [code for code, _ in results] == [0, 0]
    assert f"the checkpoint of step 4 is damaged and was skipped: {told}" in results[0][1]
    assert f"going on from {checkpoints / 'step-00000002'}" in results[0][1]
    assert [step for step, _ in layout.damaged(checkpoints)] == [4]
    assert complete_steps(checkpoints) == [4, 6]
    assert step_lines(tmp_path / "tiny")[:4] == before


def test_where_every_checkpoint_is_damaged_the_run_is_not_begun_again(shards: Path, tmp_path: Path) -> None:
    arguments = words(shards, tmp_path)
    run_ranks(jobs.train, 1, [*arguments, "train.num_steps=2"])
    flip(tmp_path / "tiny" / "checkpoints" / "step-00000002" / "rank-00000.safetensors", 5000)
    ((code, error),) = run_ranks(jobs.train_and_tell, 1, [*arguments, "train.num_steps=3"])
    assert code == 2
    assert "CheckpointError: no checkpoint is left that is not damaged (step 2: rank-00000.safetensors: " in error
    assert "bring back the files from a copy, or begin anew under another name" in error
    assert complete_steps(tmp_path / "tiny" / "checkpoints") == [2]


def test_a_finished_run_whose_last_checkpoint_was_damaged_takes_its_last_steps_again(
    shards: Path, tmp_path: Path
) -> None:
    arguments = words(shards, tmp_path, train__num_steps=4, checkpoint__every_steps=2)
    run_ranks(jobs.train, 1, arguments)
    before = step_lines(tmp_path / "tiny")
    flip(tmp_path / "tiny" / "checkpoints" / "step-00000004" / "rank-00000.safetensors", 5000)
    ((code, error),) = run_ranks(jobs.train_and_tell, 1, arguments)
    assert code == 75
    assert "RequeueError: the checkpoint of step 4 is damaged and was skipped" in error
    assert run_ranks(jobs.train, 1, arguments) == [0]
    assert step_lines(tmp_path / "tiny") == before


def test_a_save_that_fails_is_told_and_training_goes_on(shards: Path, tmp_path: Path) -> None:
    changes = {"train__num_steps": 6, "checkpoint__every_steps": 2, "checkpoint__retry_s": 0}
    arguments = words(shards, tmp_path, 2, **changes)
    checkpoints = tmp_path / "tiny" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / ".saving-00000004").write_text("in the way")
    results = run_ranks(jobs.train_aloud, 2, arguments)
    assert [code for code, _ in results] == [0, 0]
    assert "warning: step 4: the checkpoint could not be written: rank 0: [Errno 17] File exists" in results[0][1]
    assert [event["step"] for event in events(tmp_path / "tiny", "checkpoint")] == [2, 6]
    assert [event["step"] for event in events(tmp_path / "tiny", "checkpoint_failed")] == [4]
    assert complete_steps(checkpoints) == [2, 6]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_run_whose_last_save_fails_asks_to_be_started_again(asynchronous: bool, shards: Path, tmp_path: Path) -> None:
    changes = {"checkpoint__every_steps": 2, "checkpoint__retry_s": 0, "checkpoint__asynchronous": asynchronous}
    arguments = words(shards, tmp_path, 2, train__num_steps=4, **changes)
    assert run_ranks(jobs.train, 2, [*arguments, "train.num_steps=2"]) == [0, 0]
    refused = "rank-00001.safetensors"
    life = Life(troubled_jobs.train_with_writes_refused, 2, tmp_path / "told", arguments, float("inf"), refused)
    assert life.wait() == [75, 75]
    told = life.told()
    assert "SaveError: the checkpoint could not be written: rank 1: [Errno 28] No space left on device" in told
    assert "make room or mend the file system; the same command goes on from the checkpoint before" in told
    checkpoints = tmp_path / "tiny" / "checkpoints"
    assert complete_steps(checkpoints) == [2]
    assert (checkpoints / "latest").read_text() == "step-00000002\n"


def test_a_save_is_tried_again_until_the_file_system_is_back(shards: Path, tmp_path: Path) -> None:
    arguments = words(shards, tmp_path, 2, train__num_steps=2, checkpoint__retry_s=0.6)
    assert run_ranks(troubled_jobs.train_with_writes_refused, 2, arguments, 3, "rank-00001.safetensors") == [0, 0]
    assert complete_steps(tmp_path / "tiny" / "checkpoints") == [2]


def test_room_is_looked_for_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    arguments = words(shards, tmp_path, train__num_steps=2, checkpoint__retry_s=0)
    ((code, told),) = run_ranks(troubled_jobs.train_on_a_small_disk, 1, arguments, 1_000_000)
    assert code == 75
    assert "SpaceError: the checkpoint could not be written: a checkpoint takes " in told
    assert " MiB, 976.6 KiB are free" in told
    assert list((tmp_path / "tiny" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (3, 2)])
def test_written_beside_training_or_while_it_waits_the_values_are_the_same(
    stage: int, ranks: int, shards: Path, tmp_path: Path
) -> None:
    for name, asynchronous in (("beside", True), ("between", False)):
        changes = {"train__num_steps": 4, "checkpoint__every_steps": 1, "checkpoint__keep_last": 4}
        changes["checkpoint__asynchronous"] = asynchronous
        job = troubled_jobs.train_with_slow_copies if asynchronous else jobs.train
        run_ranks(job, ranks, words(shards, tmp_path, stage, name=name, **changes))
    for step in (1, 2, 3, 4):
        beside, between = (
            layout.checkpoint_path(tmp_path / name / "checkpoints", step) for name in ("beside", "between")
        )
        for path in sorted(beside.glob("rank-*.safetensors")):
            one, other = (
                {name: tensor for name, tensor in load_file(file).items() if not name.startswith("rng|")}
                for file in (path, between / path.name)
            )
            assert one.keys() == other.keys()
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_where_a_host_has_no_room_for_a_copy_training_waits(shards: Path, tmp_path: Path) -> None:
    arguments = words(shards, tmp_path, 2, train__num_steps=2, checkpoint__every_steps=1)
    assert [code for code, _ in run_ranks(troubled_jobs.train_with_memory, 2, arguments, 400_000)] == [0, 0]
    saves = events(tmp_path / "tiny", "checkpoint")
    assert [(event["step"], event["blocked_s"] == event["durable_s"]) for event in saves] == [(1, True), (2, True)]
    assert "no room for a copy of the state" in (tmp_path / "tiny" / "logs" / "rank-00001.log").read_text()


def test_everything_that_matters_is_in_it(shards: Path, tmp_path: Path) -> None:
    mixture = {"one": {"shards": str(shards), "weight": 0.75}, "two": {"shards": str(shards), "weight": 0.25}}
    changes = {"data": {"seq_len": 24, "mixture": mixture}, "train__num_steps": 2}
    run_ranks(jobs.train, 2, words(shards, tmp_path, 3, **changes))
    folder = tmp_path / "tiny" / "checkpoints" / "step-00000002"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {entry["name"] for entry in manifest["files"]} == {p.name for p in folder.iterdir()} - {"manifest.json"}
    assert {path.suffix for path in folder.iterdir()} == {".json", ".yaml", ".safetensors"}
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["optimizer_step"], state["precision"], state["loss_scale"]) == (2, 2, "fp32", {})
    assert (state["zero_stage"], state["world_size"]) == (3, 2)
    assert state["cursor"]["position"] == 16
    assert state["cursor"]["consumed"].keys() == {"one", "two"}
    assert sum(state["cursor"]["consumed"].values()) == 16
    assert [row["step"] for row in state["evaluations"]] == [0, 2]
    assert len(state["fingerprint"]) == 16
    assert state["versions"].keys() == {"launcher", "torch", "deepspeed", "transformers", "numpy"}
    assert "lr: 0.003" in (folder / "recipe.yaml").read_text()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "modernbert"
    generators = {"torch", "python", "python_gauss", "numpy", "numpy_position", "numpy_gauss"}
    held: dict[str, int] = {}
    for rank in range(2):
        tensors = load_file(folder / f"rank-{rank:05d}.safetensors")
        assert {f"rng|{name}" for name in generators} <= tensors.keys()
        for entry in json.loads((folder / f"rank-{rank:05d}.json").read_text())["slices"]:
            held[entry["name"]] = held.get(entry["name"], 0) + entry["numel"]
            for key in ("master", "exp_avg", "exp_avg_sq"):
                assert tensors[f"{entry['stored']}|{key}"].shape == (entry["numel"],)
    shapes = {entry["name"]: entry["shape"] for entry in json.loads((folder / "rank-00000.json").read_text())["slices"]}
    assert all(held[name] == torch.Size(shape).numel() for name, shape in shapes.items())


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_planted_pickle_does_not_run(shards: Path, tmp_path: Path) -> None:
    arguments = words(shards, tmp_path, train__num_steps=2)
    run_ranks(jobs.train, 1, arguments)
    folder, mark = tmp_path / "tiny" / "checkpoints" / "step-00000002", tmp_path / "it-ran"
    trap = pickle.dumps(Trap(mark))
    for name in ("mp_rank_00_model_states.pt", "rank-00001.safetensors", "rank-00001.json", "latest.pt", "state.pkl"):
        (folder / name).write_bytes(trap)
    assert run_ranks(jobs.train, 1, [*arguments, "train.num_steps=3"]) == [0]
    # and in the place of a file that is read, with a manifest that says it belongs there
    folder = folder.with_name("step-00000003")
    (folder / "rank-00000.safetensors").write_bytes(trap)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [describe_file(folder / entry["name"]) for entry in manifest["files"]]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, [*arguments, "train.num_steps=4"])
    assert code == 2
    assert "DamagedCheckpointError: the file cannot be read" in told
    assert not mark.exists()
    pickle.loads(trap)
    assert mark.exists()
