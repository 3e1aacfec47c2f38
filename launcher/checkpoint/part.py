"""What one rank writes of a checkpoint: its slices, its random states, and on rank 0 what every rank holds alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from launcher.checkpoint import folder as layout
from launcher.checkpoint.buffers import PREFIX as BUFFER
from launcher.checkpoint.buffers import persistent_buffers
from launcher.checkpoint.rng import random_states
from launcher.checkpoint.slices import held_slices
from launcher.checkpoint.tensor_file import Described, Layout

_SLICE_BYTES = torch.float32.itemsize


class Part:
    """This rank's part of the checkpoints of one engine; which slices it holds does not change while it trains.

    Args:
        engine: DeepSpeed engine.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._rank = torch.distributed.get_rank()
        self.slices: list[dict[str, Any]] = []
        of_slices: list[Described] = []
        names: set[str] = set()
        for held in held_slices(engine):
            if held.mine_to_save:
                # Of an expert shared among ranks a rank holds several ranges: each is a tensor of its own.
                stored = held.name if held.name not in names else f"{held.name}@{held.start}"
                names.add(held.name)
                entry = {"name": held.name, "shape": held.shape, "start": held.start, "numel": held.numel}
                columns = {} if held.columns is None else {"columns": held.columns}
                self.slices.append({**entry, **columns, "stored": stored})
                of_slices += [(f"{stored}|{key}", torch.float32, (held.numel,)) for key in held.tensors]
        self._small = self._small_tensors()
        wide, narrow = self._by_width()
        self.layout = Layout([*_describe(wide), *of_slices, *_describe(narrow)])

    def hold(self) -> None:
        """Take copies of what changes with every pass: random states and buffers."""
        self._small = self._small_tensors()

    def tensors(self) -> Iterator[torch.Tensor]:
        """Everything, in the order of the layout; a slice may be valid only until the next is asked for."""
        wide, narrow = self._by_width()
        yield from wide.values()
        for held in held_slices(self._engine):
            if held.mine_to_save:
                yield from held.tensors.values()
        yield from narrow.values()

    def index(self, file: dict[str, Any]) -> str:
        """The JSON that says which ranges are in the file."""
        return index_of(self.slices, file)

    def path(self, saving: Path) -> Path:
        """The file of this rank."""
        return saving / f"rank-{self._rank:05d}.safetensors"

    def _small_tensors(self) -> dict[str, torch.Tensor]:
        tensors = random_states()
        if self._rank == 0:
            buffers = persistent_buffers(self._engine.module)
            tensors |= {BUFFER + name: buffer.detach().cpu().clone() for name, buffer in buffers.items()}
        return dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))

    def _by_width(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Those at least as wide as a slice's values, and the others."""
        wide = {name: tensor for name, tensor in self._small.items() if tensor.dtype.itemsize >= _SLICE_BYTES}
        return wide, {name: tensor for name, tensor in self._small.items() if name not in wide}


def index_of(slices: list[dict[str, Any]], file: dict[str, Any]) -> str:
    """The JSON that says which ranges are in a rank's file.

    Args:
        slices: Of each its parameter's `name` and `shape`, the range (`start`, `numel`), the `columns` it is of unless
            it is of all, and the name it is `stored` under.
        file: Its entry in the manifest.
    """
    version = layout.WITH_COLUMNS if any("columns" in entry for entry in slices) else layout.FORMAT_VERSION
    return json.dumps({"format_version": version, "slices": slices, "file": file})


def _describe(tensors: dict[str, torch.Tensor]) -> list[Described]:
    return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
