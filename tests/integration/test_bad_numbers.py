"""A loss or gradient that is no number, or far off: left out, then passed over, then told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
import troubled_jobs
from ranks import Life, run_ranks
from safetensors.numpy import load_file

from launcher.engine.records import read_metrics
from launcher.samples.passed_over import Kept
from launcher.tracing import trace_digest, trace_step

GLOBAL_BATCH = 8


def recipe(folder: Path, shards: Path, name: str, **changes: Any) -> Path:
    tree = tiny.recipe_tree("clm", shards, folder, name=name, schedule__kind="constant", **changes)
    return tiny.write_recipe(folder / f"{name}.yaml", tree)


def starts_of(*steps: int) -> list[int]:
    """Where the data of these steps begins, in a run that passed over nothing."""
    return [(step - 1) * GLOBAL_BATCH for step in steps]


def state_of(run: Path, step: int) -> dict[str, bytes]:
    """Masters and moments of a checkpoint."""
    kept = {}
    for path in sorted((run / "checkpoints" / f"step-{step:08d}").glob("rank-*.safetensors")):
        kept |= {f"{path.name} {k}": v.tobytes() for k, v in load_file(path).items() if not k.startswith("rng|")}
    return kept


def saved(run: Path, step: int) -> dict[str, Any]:
    """What a checkpoint says of the run."""
    state: dict[str, Any] = json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
    return state


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if line.get("event") == kind]


@pytest.mark.parametrize(
    ("config", "precision", "kind", "passes"),
    [
        ("zero0", "fp32", "gradient", 1),  # DeepSpeed checks nothing here, and the loss looks sound
        ("zero2", "bf16_autocast", "loss", 2),  # in one of two accumulated passes
        ("zero3", "bf16", "gradient", 1),
        pytest.param("zero0", "fp32", "loss", 1, marks=pytest.mark.slow),
        pytest.param("zero0", "bf16", "gradient", 1, marks=pytest.mark.slow),
        pytest.param("zero1", "bf16", "loss", 1, marks=pytest.mark.slow),
        pytest.param("zero2", "bf16_autocast", "gradient", 2, marks=pytest.mark.slow),
        pytest.param("zero3", "fp32", "loss", 1, marks=pytest.mark.slow),
    ],
)
def test_a_bad_step_leaves_weights_and_moments_as_they_were(
    config: str, precision: str, kind: str, passes: int, shards: Path, tmp_path: Path
) -> None:
    path = recipe(
        tmp_path,
        shards,
        "bad",
        train__num_steps=5,
        train__precision=precision,
        batch__micro_batch=GLOBAL_BATCH // 2 // passes,
        checkpoint={"every_steps": 1, "keep_last": 5},
    )
    words = ["--ds_config", config, "--recipe", str(path)]
    assert run_ranks(troubled_jobs.train_on_bad_data, 2, words, kind, starts_of(1, 4)) == [0, 0]
    run = tmp_path / "bad"
    assert [event["step"] for event in events(run, "left_out")] == [1, 4]
    assert state_of(run, 4) == state_of(run, 3)
    assert state_of(run, 5) != state_of(run, 4)
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "lr" in line]
    assert ["left_out" in line for line in lines] == [True, False, False, True, False]
    assert "NaN" not in (run / "metrics.jsonl").read_text()


def test_after_some_in_a_row_the_run_goes_back_and_passes_over_the_data(shards: Path, tmp_path: Path) -> None:
    """Weights change at a step amid that data, where the change stays, and at one ahead, for which it waits."""
    weight_of = {"law": 1, "wiki": 0, "new": 0}
    mixture = {name: {"shards": str(shards), "weight": weight} for name, weight in weight_of.items()}
    weights = [{"step": 6, "weights": {"wiki": 1}}, {"step": 10, "weights": {"law": 0, "wiki": 0, "new": 1}}]
    data = {"seq_len": 24, "mixture": mixture, "changes": weights}
    options = {"train__num_steps": 12, "checkpoint": {"every_steps": 4, "keep_last": 9}, "data": data}
    words = ["--ds_config", "zero2", "--recipe", str(recipe(tmp_path, shards, "bad", **options))]
    assert run_ranks(troubled_jobs.train_on_bad_data, 2, words, "loss", starts_of(6, 7, 8)) == [0, 0]
    run = tmp_path / "bad"
    (event,) = events(run, "rewind")
    assert (event["from_step"], event["step"]) == (8, 4)
    assert (event["first_position"], event["num_positions"]) == (4 * GLOBAL_BATCH, 4 * GLOBAL_BATCH)
    assert [event["step"] for event in events(run, "left_out")] == [6, 7, 8]

    # The same as if it had known.
    words = ["--ds_config", "zero2", "--recipe", str(recipe(tmp_path, shards, "knew", **options))]
    assert run_ranks(jobs.train, 2, [*words, "train.num_steps=4"]) == [0, 0]
    Kept([[4 * GLOBAL_BATCH, 4 * GLOBAL_BATCH]], 1, [[6, 6 * GLOBAL_BATCH]]).write(tmp_path / "knew")
    assert run_ranks(jobs.train, 2, words) == [0, 0]
    steps = [
        [(x["step"], x["loss"], x["grad_norm"], x["batch_digest"]) for x in read_metrics(path) if "lr" in x]
        for path in (run / "metrics.jsonl", tmp_path / "knew" / "metrics.jsonl")
    ]
    assert steps[0] == steps[1]
    assert [step for step, *_ in steps[0]] == list(range(1, 13))
    assert saved(run, 12)["cursor"]["position"] == 16 * GLOBAL_BATCH
    # Of the steps behind the change alone, which the checkpoint of step 4 knows nothing of.
    assert len(saved(run, 8)["health"]["recent_losses"]) == 4
    assert [saved(run, step)["health"] for step in (8, 12)] == [
        saved(tmp_path / "knew", step)["health"] for step in (8, 12)
    ]
    named = [{sequence.corpus for sequence in trace_step(run, step)[0]} for step in (4, 5, 10, 11, 12)]
    assert named == [{"law"}, {"law", "wiki"}, {"law", "wiki"}, {"new"}, {"new"}]

    # The text that did it, and that of the step that took its number.
    told = events(run, "left_out")[0]
    step, sequences, verdict = trace_digest(run, told["batch_digest"])
    assert step == 6
    assert verdict.startswith(
        f"the digest is the run's: {told['batch_digest']}; its update was left out: the loss is no"
    )
    assert [sequence.position for sequence in sequences] == list(range(40, 48))
    sequences, verdict = trace_step(run, 6)
    assert verdict == f"the digest is the run's: {steps[0][5][3]}"
    assert [sequence.position for sequence in sequences] == list(range(72, 80))


@pytest.mark.parametrize(
    ("every_steps", "told", "rewinds"),
    [
        (2, "though the run went back 2 times and passed over the data each time", 2),
        (0, "3 bad steps in a row, the last is 6, and no checkpoint to go back to", 0),
    ],
)
def test_a_run_that_comes_to_no_good_ends_with_a_report(
    every_steps: int, told: str, rewinds: int, shards: Path, tmp_path: Path
) -> None:
    options = {"checkpoint": {"every_steps": every_steps}, "guards": {"max_rewinds": 2}}
    path = recipe(tmp_path, shards, "bad", train__num_steps=20, **options)
    words = ["--ds_config", "zero1", "--recipe", str(path)]
    life = Life(troubled_jobs.train_on_bad_data, 2, tmp_path / "out", words, "loss", starts_of(*range(4, 99)))
    assert life.wait() == [2, 2], life.told()
    assert "DivergedError" in life.told()
    assert told in life.told()
    assert "pretrain trace" in life.told()
    assert "Traceback" not in life.told()
    assert len(events(tmp_path / "bad", "rewind")) == rewinds


def losses_of(run: Path) -> list[tuple[int, float | None]]:
    return [(event["step"], event["loss"]) for event in events(run, "evaluation")]


@pytest.mark.parametrize("config", ["zero0", "zero2"])
def test_a_run_whose_last_validation_is_no_number_goes_back_before_it_saves(
    config: str, shards: Path, tmp_path: Path
) -> None:
    mixture = {name: {"shards": str(shards), "weight": 1} for name in ("law", "wiki")}
    options = {"checkpoint": {"every_steps": 4, "keep_last": 9}, "data": {"seq_len": 24, "mixture": mixture}}
    path = recipe(tmp_path, shards, "broken", train__num_steps=6, **options)
    words = ["--ds_config", config, "--recipe", str(path)]
    assert run_ranks(troubled_jobs.train_with_weights_that_break, 2, words, 6, 1) == [0, 0]
    run = tmp_path / "broken"
    (event,) = events(run, "rewind")
    assert (event["from_step"], event["step"], event["num_positions"]) == (6, 4, 2 * GLOBAL_BATCH)
    assert event["why"] == "the validation of step 6 is no finite number"
    assert all(loss is not None for _, loss in losses_of(run))
    assert saved(run, 6)["passed_over"] == [[4 * GLOBAL_BATCH, 2 * GLOBAL_BATCH]]
    assert saved(run, 6)["evaluations"][-1]["step"] == 6


@pytest.mark.parametrize(
    ("every_steps", "told", "rewinds"),
    [
        (4, "the validation of step 6 is no finite number, though the run went back 2 times", 2),
        (0, "the validation of step 6 is no finite number, and no checkpoint to go back to", 0),
    ],
)
def test_a_run_whose_last_validation_stays_no_number_ends_with_a_report(
    every_steps: int, told: str, rewinds: int, shards: Path, tmp_path: Path
) -> None:
    mixture = {name: {"shards": str(shards), "weight": 1} for name in ("law", "wiki")}
    options = {"checkpoint": {"every_steps": every_steps}, "guards": {"max_rewinds": 2}}
    data = {"seq_len": 24, "mixture": mixture}
    path = recipe(tmp_path, shards, "broken", train__num_steps=6, data=data, **options)
    words = ["--ds_config", "zero0", "--recipe", str(path)]
    life = Life(troubled_jobs.train_with_weights_that_break, 2, tmp_path / "out", words, 6, 99)
    assert life.wait() == [2, 2], life.told()
    run = tmp_path / "broken"
    assert f"DivergedError: {told}" in life.told()
    assert "Traceback" not in life.told()
    assert len(events(run, "rewind")) == rewinds
    assert losses_of(run)[-1] == (6, None)
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    assert not (run / "checkpoints" / "step-00000006").exists()
    assert not (run / "export").exists()


def test_weights_that_a_stop_saved_before_their_validation_was_done_are_not_exported(
    shards: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, shards, "broken", train__num_steps=6, checkpoint={"every_steps": 4})
    words, run = ["--ds_config", "zero0", "--recipe", str(path)], tmp_path / "broken"
    stopped = Life(troubled_jobs.train_asked_to_stop_in_a_validation, 2, tmp_path / "1", words, 6, True)
    assert stopped.wait() == [75, 75], stopped.told()
    again = Life(jobs.train, 2, tmp_path / "2", words)
    assert again.wait() == [2, 2], again.told()
    assert "DivergedError: the validation of step 6 is no finite number" in again.told()
    assert not (run / "export").exists()
    # As it is told.
    assert "guards.back_checkpoints=2 goes back to one before it" in again.told()
    mended = Life(jobs.train, 2, tmp_path / "3", [*words, "guards.back_checkpoints=2"])
    assert mended.wait() == [0, 0], mended.told()
    assert [event["step"] for event in events(run, "rewind")] == [4]
    assert losses_of(run)[-1][0] == 6
    assert all(loss is not None for _, loss in losses_of(run))


def test_a_validation_that_is_infinite_before_the_first_step_ends_the_run(shards: Path, tmp_path: Path) -> None:
    words = ["--ds_config", "zero0", "--recipe", str(recipe(tmp_path, shards, "broken", train__num_steps=6))]
    life = Life(troubled_jobs.train_a_model_that_cannot_be_measured, 2, tmp_path / "out", words)
    assert life.wait() == [2, 2], life.told()
    assert "DivergedError: the validation of step 0 is no finite number" in life.told()
    assert not [line for line in read_metrics(tmp_path / "broken" / "metrics.jsonl") if "lr" in line]


@pytest.mark.parametrize(
    ("every_steps", "fix"),
    [(2, "guards.back_checkpoints=2 goes back to one before it"), (4, "there is none before it: begin anew")],
)
def test_a_run_goes_back_no_further_than_it_may_where_its_newest_checkpoint_is_what_is_broken(
    every_steps: int, fix: str, shards: Path, tmp_path: Path
) -> None:
    """As one that was saved when a stop had ended its validation: the next start measures it."""
    keep = {"every_steps": every_steps, "keep_last": 9}
    path = recipe(tmp_path, shards, "broken", train__num_steps=6, checkpoint=keep)
    words = ["--ds_config", "zero0", "--recipe", str(path)]
    assert run_ranks(jobs.train, 2, [*words, "train.num_steps=5"]) == [0, 0]
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step-00000005")
    words = [*words, "eval.every_steps=4"]
    life = Life(troubled_jobs.train_a_model_that_cannot_be_measured, 2, tmp_path / "out", words)
    assert life.wait() == [2, 2], life.told()
    assert "of step 4 is no finite number, and the checkpoint to go back to is that step's" in life.told()
    assert fix in life.told()
    assert events(tmp_path / "broken", "rewind") == []


@pytest.mark.parametrize("config", ["zero0", "zero2", "zero3"])
def test_a_run_that_learns_nothing_ends_at_its_first_step(config: str, shards: Path, tmp_path: Path) -> None:
    words = ["--ds_config", config, "--recipe", str(recipe(tmp_path, shards, "idle", train__num_steps=5))]
    life = Life(troubled_jobs.train_without_gradients, 2, tmp_path / "out", words)
    assert life.wait() == [2, 2], life.told()
    assert life.told().count("DivergedError: the model learns nothing") == 1
    assert "Traceback" not in life.told()
    assert not list((tmp_path / "idle").glob("checkpoints/step-*"))
