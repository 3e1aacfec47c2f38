"""A checkpoint of DeepSpeed's own becomes one of a run here, once: weights, fp32 masters, moments, step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from launcher.checkpoint import folder as layout
from launcher.checkpoint.buffers import PREFIX as BUFFER
from launcher.checkpoint.buffers import persistent_buffers
from launcher.checkpoint.deepspeed_files import KEYS, DeepSpeedCheckpoint
from launcher.checkpoint.part import index_of
from launcher.checkpoint.state import run_state
from launcher.checkpoint.tensor_file import BLOCK_BYTES, Described, DurableFile, Layout, StreamedFile, aligned_buffer
from launcher.config.loading import resolved_yaml
from launcher.config.recipe import Recipe
from launcher.engine.records import Progress
from launcher.errors import CheckpointError, UsageError
from launcher.feed.data import open_data
from launcher.models.build import AUTO_CLASSES
from launcher.models.configuration import build_config
from launcher.models.local import code_texts, runs_code
from launcher.objectives.base import longest_sequence

RANK_FILE = "rank-00000.safetensors"


def take_over(source: Path, recipe: Recipe) -> Path:
    """Write a checkpoint from which the recipe's run goes on where DeepSpeed's stopped.

    The data goes on behind the samples that so many steps of this recipe would have consumed. Random states are not in
    DeepSpeed's checkpoints; those of this run begin anew.

    Args:
        source: DeepSpeed's folder; see `DeepSpeedCheckpoint`.
        recipe: Of the run that is to go on, with the model it was made with.

    Returns:
        The new checkpoint.

    Raises:
        CheckpointError: The source cannot be read, or is of another model.
        UsageError: The run has checkpoints already, or fewer steps than the source.
        ModelError: The model needs code that the recipe does not name, or names and is not there.
    """
    checkpoints = recipe.run_folder / "checkpoints"
    if layout.complete_steps(checkpoints):
        raise UsageError("the run has checkpoints already", str(checkpoints), "give the new run another name=…")
    theirs = DeepSpeedCheckpoint(source)
    progress = theirs.progress
    if not 0 < progress.step <= recipe.train.num_steps:
        raise UsageError(
            f"it was saved after {progress.step} steps, the recipe has {recipe.train.num_steps}",
            "train.num_steps",
            f"add train.num_steps=N with N above {progress.step}",
        )
    data = open_data(recipe)
    config = build_config(recipe.model, recipe.objective.head, data.tokenizer, longest_sequence(data.objective))
    came_from, trusted = recipe.model.continue_from, recipe.model.trusted_code
    own_code = code_texts(came_from, trusted)
    with torch.device("meta"):
        model: PreTrainedModel = AUTO_CLASSES[recipe.objective.head].from_config(
            config,
            dtype=torch.float32,
            trust_remote_code=came_from is not None and runs_code(came_from, trusted),
        )
    position = recipe.batch.schedule.position_at(progress.step)
    done = Progress(
        precision=theirs.precision if recipe.train.precision == "auto" else recipe.train.precision,
        step=progress.step,
        tokens=position * recipe.data.seq_len,
    )
    state = {
        "format_version": layout.FORMAT_VERSION,
        "optimizer_step": progress.optimizer_step,
        "loss_scale": progress.loss_scale,
        "zero_stage": None,
        "world_size": 1,
        **run_state(recipe, done, data.train.cursor_at(position), data.manifests),
        "taken_over_from": str(source.resolve()),
    }
    texts = {
        "recipe.yaml": resolved_yaml(recipe),
        "config.json": config.to_json_string(use_diff=False),
        "state.json": json.dumps(state, indent=1),
        **own_code,
    }
    return _write(theirs, model, checkpoints, progress.step, texts)


def _write(
    theirs: DeepSpeedCheckpoint, model: PreTrainedModel, checkpoints: Path, step: int, texts: dict[str, str]
) -> Path:
    saving = layout.saving_path(checkpoints, step)
    shutil.rmtree(saving, ignore_errors=True)
    saving.mkdir(parents=True)
    try:
        file, slices = _write_tensors(theirs, model, saving / RANK_FILE)
        texts = {**texts, "rank-00000.json": index_of(slices, file)}
        files = [file, *(layout.write_file(saving / name, text) for name, text in texts.items())]
        final = layout.publish(checkpoints, step, files)
    finally:
        shutil.rmtree(saving, ignore_errors=True)
    layout.write_latest(checkpoints, step)
    return final


def _write_tensors(
    theirs: DeepSpeedCheckpoint, model: PreTrainedModel, path: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The one rank's file and the slices in it: every parameter whole."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    buffers = _buffers(theirs, model)
    numels = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    described: list[Described] = [
        (f"{name}|{key}", torch.float32, (numel,)) for name, numel in numels.items() for key in KEYS
    ]
    described += [(BUFFER + name, buffer.dtype, tuple(buffer.shape)) for name, buffer in buffers.items()]
    with DurableFile(path) as file:
        stream = StreamedFile(file, Layout(described), aligned_buffer(BLOCK_BYTES))
        for _, values in theirs.tensors(shapes, model.state_dict().keys() - shapes.keys()):
            stream.add(values)
        for buffer in buffers.values():
            stream.add(buffer)
        written = stream.finish()
    slices = [
        {"name": name, "shape": shape, "start": 0, "numel": numels[name], "stored": name}
        for name, shape in shapes.items()
    ]
    return written, slices


def _buffers(theirs: DeepSpeedCheckpoint, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's persistent buffers with the checkpoint's values, the widest first."""
    values = theirs.buffers()
    wanted = persistent_buffers(model)
    lacking = sorted(wanted.keys() - values.keys())
    if lacking:
        raise CheckpointError(
            f"the buffer {lacking[0]} is missing in the checkpoint",
            str(theirs.folder),
            "give the recipe of the model it was made with",
        )
    kept = {name: values[name].to(buffer.dtype) for name, buffer in wanted.items()}
    return dict(sorted(kept.items(), key=lambda item: -item[1].dtype.itemsize))
