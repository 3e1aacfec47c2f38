"""Saving: every rank its slices, rank 0 the rest, one rename that makes it a checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import SafetensorError
from safetensors.torch import save_file

from launcher.checkpoint import folder as layout
from launcher.checkpoint.buffers import PREFIX as BUFFER
from launcher.checkpoint.buffers import persistent_buffers
from launcher.checkpoint.loss_scale import loss_scale_state
from launcher.checkpoint.rng import random_states
from launcher.checkpoint.slices import MASTER, held_slices, optimizer_step
from launcher.errors import RequeueError


class SaveError(RequeueError):
    """A checkpoint could not be written; the ones before it are as they were, and a restart goes on from them."""


def save(engine: Any, folder: Path, state: Mapping[str, Any], texts: Mapping[str, str], keep_last: int) -> Path:
    """Write a checkpoint; every rank calls it at the same step.

    A crash at any instant leaves the previous checkpoint as the newest complete one: a save gets its name only when
    every rank's file is on the disk and the manifest that lists them is written.

    Args:
        engine: DeepSpeed engine.
        folder: The run's `checkpoints/`.
        state: What `state.json` says; must hold `step`.
        texts: Further files, name → content (`recipe.yaml`, `config.json`).
        keep_last: Complete checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        SaveError: On every rank, when any rank could not write its part.
    """
    rank = torch.distributed.get_rank()
    step = int(state["step"])
    of_engine = {
        "format_version": layout.FORMAT_VERSION,
        "optimizer_step": optimizer_step(engine),
        "loss_scale": loss_scale_state(engine),
        "zero_stage": engine.zero_optimization_stage(),
        "world_size": torch.distributed.get_world_size(),
    }
    saving, final = layout.saving_path(folder, step), layout.checkpoint_path(folder, step)

    def make_place() -> None:
        shutil.rmtree(saving, ignore_errors=True)
        saving.mkdir(parents=True)

    def finish() -> None:
        for name, text in texts.items():
            layout.write_durably(saving / name, text)
        layout.write_durably(saving / "state.json", json.dumps({**of_engine, **state}, indent=1))
        ranks = sorted(saving.glob("rank-*.json"))
        written = [json.loads(path.read_text(encoding="utf-8"))["file"] for path in ranks]
        small = [layout.describe_file(saving / name) for name in (*texts, "state.json")]
        small += [layout.describe_file(path) for path in ranks]
        manifest = {"format_version": layout.FORMAT_VERSION, "step": step, "files": written + small}
        layout.write_durably(saving / layout.MANIFEST, json.dumps(manifest, indent=1))
        layout.sync(saving)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(saving, final)
        layout.sync(folder)

    _together(make_place if rank == 0 else None, folder)
    _together(lambda: _write_rank(engine, saving, rank), folder)
    _together(finish if rank == 0 else None, folder)
    if rank == 0:
        try:
            layout.prune(folder, keep_last)
        except OSError as error:  # the new checkpoint stands; the old ones are tried again at the next save
            logging.getLogger(__name__).warning("old checkpoints could not be deleted: %s", error)
    return final


def _write_rank(engine: Any, saving: Path, rank: int) -> None:
    tensors: dict[str, torch.Tensor] = {}
    slices = []
    for held in held_slices(engine):
        if held.mine_to_save:
            # Of an expert shared among ranks a rank holds several ranges: each is a tensor of its own.
            stored = held.name if f"{held.name}|{MASTER}" not in tensors else f"{held.name}@{held.start}"
            slices.append(
                {"name": held.name, "shape": held.shape, "start": held.start, "numel": held.numel, "stored": stored}
            )
            # clone: views of one flat buffer are refused by safetensors, which would write the buffer many times
            tensors |= {f"{stored}|{key}": tensor.detach().cpu().clone() for key, tensor in held.tensors.items()}
    if rank == 0:  # every rank holds the same
        for name, buffer in persistent_buffers(engine.module).items():
            tensors[BUFFER + name] = buffer.detach().cpu().clone()
    path = saving / f"rank-{rank:05d}.safetensors"
    save_file(tensors | random_states(), path)
    layout.sync(path)
    index = {"format_version": layout.FORMAT_VERSION, "slices": slices, "file": layout.describe_file(path)}
    layout.write_durably(path.with_suffix(".json"), json.dumps(index))


def _together(act: Callable[[], None] | None, folder: Path) -> None:
    """Do a part of the work and learn whether every rank did its own."""
    problem = ""
    try:
        if act is not None:
            act()
    except (OSError, SafetensorError) as error:
        problem = f"rank {torch.distributed.get_rank()}: {error}"
    problems: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, problem)
    if any(problems):
        raise SaveError(
            "the checkpoint could not be written: " + "; ".join(p for p in problems if p),
            str(folder),
            "make room or mend the file system; the same command goes on from the checkpoint before",
        )
