"""Checkpoint folders without a model: a few bytes, a state, a manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.checkpoint import folder as layout
from launcher.shards.manifest import checksum


def make_checkpoint(folder: Path, step: int, *, loss: float | None = None, complete: bool = True) -> Path:
    """A checkpoint of a step in a run's `checkpoints/`; with a validation at that step where there is a loss."""
    path = layout.checkpoint_path(folder, step)
    path.mkdir(parents=True)
    (path / "rank-00000.safetensors").write_bytes(b"x" * (step + 1))
    evaluations = [{"step": 0, "loss": 9.0}] + ([{"step": step, "loss": loss}] if loss is not None else [])
    state = {"format_version": 1, "step": step, "evaluations": evaluations}
    (path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    if complete:
        files = [describe_file(path / name) for name in ("rank-00000.safetensors", "state.json")]
        manifest = {"format_version": 1, "step": step, "files": files}
        (path / layout.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return path


def describe_file(path: Path) -> dict[str, Any]:
    """A file's entry in a manifest, as it lies there."""
    return {"name": path.name, "bytes": path.stat().st_size, "xxh3": checksum(path)}


def flip(file: Path, offset: int = 0) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)
