"""Loading: any range of any parameter, memory-mapped, by any rank of any later run."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed
from safetensors import SafetensorError, safe_open

from launcher.checkpoint import folder as layout
from launcher.checkpoint.buffers import PREFIX as BUFFER
from launcher.checkpoint.buffers import restore_buffers
from launcher.checkpoint.find import Found, newest_sound, problem_of, put_aside
from launcher.checkpoint.loss_scale import restore_loss_scale
from launcher.checkpoint.pieces import Columns, blocks_of, plain_pieces, plain_shapes
from launcher.checkpoint.ranks import Ranks
from launcher.checkpoint.rng import PREFIX as RANDOM
from launcher.checkpoint.rng import restore_random_states, seed_generators
from launcher.checkpoint.slices import MASTER, set_optimizer_step, slices_to_fill
from launcher.checkpoint.swapped import partition_to_fill
from launcher.engine.process import ranks_per_model
from launcher.errors import CheckpointError, DamagedCheckpointError

_INDEX = re.compile(r"rank-\d{5,}\.json")


class _Slice(NamedTuple):
    """Where a range of a parameter is stored."""

    start: int
    numel: int
    columns: Columns | None
    """The columns it is a range of; None for the whole parameter."""
    file: str
    stored: str
    """First part of the tensors' names in the file."""


class CheckpointReader:
    """A complete checkpoint as a map from (parameter, kind of tensor, range) to values; a context manager.

    Args:
        path: The checkpoint's folder; its bytes are verified by `folder.verify`, not here.

    Raises:
        CheckpointError: It cannot be read.
        RequeueError: The file system is away.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = layout.read_json(path / "state.json", "step")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._slices: dict[str, list[_Slice]] = defaultdict(list)
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()
        self._indices = [path / name for name in sorted(layout.files_of(path)) if _INDEX.fullmatch(name)]
        for index in self._indices:
            for entry in layout.read_json(index, "slices")["slices"]:
                self.shapes[entry["name"]] = tuple(entry["shape"])
                stored = entry.get("stored", entry["name"])  # older checkpoints have one range of a name in a file
                columns = Columns(*entry["columns"]) if "columns" in entry else None
                self._slices[entry["name"]].append(
                    _Slice(entry["start"], entry["numel"], columns, index.stem + ".safetensors", stored)
                )

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._files.clear()

    @property
    def world_size(self) -> int:
        """Number of ranks that wrote it."""
        return len(self._indices)

    def read(self, name: str, key: str, start: int, numel: int, columns: Columns | None = None) -> torch.Tensor:
        """A range of a flattened parameter, or of some of its columns, flattened.

        Args:
            name: The parameter.
            key: `master`, `exp_avg` or `exp_avg_sq`.
            start: First value.
            numel: Number of values.
            columns: Those it is a range of; None for the whole parameter.

        Returns:
            fp32 [numel].

        Raises:
            CheckpointError: The checkpoint does not hold the whole range.
        """
        values = torch.empty(numel, dtype=torch.float32)
        filled = 0
        for there in self._slices.get(name, []):
            stored = f"{there.stored}|{key}"
            if columns != there.columns:
                filled += self._copy_blocks(values, start, columns, there, stored, self.shapes[name])
                continue
            first, last = max(start, there.start), min(start + numel, there.start + there.numel)
            if first < last:
                part = self._open(there.file).get_slice(stored)[first - there.start : last - there.start]
                values[first - start : last - start] = part
                filled += last - first
        if filled != numel:
            raise CheckpointError(
                f"{name} ({key}): {filled} of {numel} values from {start} on are in the checkpoint",
                str(self.path),
                "it belongs to another model; give this run another name",
            )
        return values

    def read_whole(self, name: str, key: str = MASTER) -> torch.Tensor:
        """A whole parameter in its own shape, fp32."""
        shape = self.shapes[name]
        return self.read(name, key, 0, torch.Size(shape).numel()).view(shape)

    def _copy_blocks(
        self,
        values: torch.Tensor,
        start: int,
        columns: Columns | None,
        there: _Slice,
        stored: str,
        shape: tuple[int, ...],
    ) -> int:
        """Copy what a slice holds of a range, where either is of some columns only; returns the number of values."""
        everything = Columns(0, shape[-1])
        copied = 0
        for wanted in blocks_of(start, values.numel(), columns or everything):
            for held in blocks_of(there.start, there.numel, there.columns or everything):
                top = max(wanted.first_row, held.first_row)
                bottom = min(wanted.first_row + wanted.num_rows, held.first_row + held.num_rows)
                left = max(wanted.first_column, held.first_column)
                right = min(wanted.first_column + wanted.num_columns, held.first_column + held.num_columns)
                if top >= bottom or left >= right:
                    continue
                first = held.offset + (top - held.first_row) * held.num_columns
                rows = self._open(there.file).get_slice(stored)[first : first + (bottom - top) * held.num_columns]
                part = rows.view(-1, held.num_columns)[:, left - held.first_column : right - held.first_column]
                into = values.narrow(0, wanted.offset, wanted.num_rows * wanted.num_columns).view(wanted.num_rows, -1)
                into = into[top - wanted.first_row : bottom - wanted.first_row]
                into[:, left - wanted.first_column : right - wanted.first_column] = part
                copied += part.numel()
        return copied

    def buffers(self) -> dict[str, torch.Tensor]:
        """The model's persistent buffers by name."""
        return self._tensors(0, BUFFER)

    def random_states(self, rank: int) -> dict[str, torch.Tensor]:
        """The random states one rank had."""
        return self._tensors(rank, RANDOM)

    def _tensors(self, rank: int, prefix: str) -> dict[str, torch.Tensor]:
        file = self._open(f"rank-{rank:05d}.safetensors")
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 (not iterable)
        return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.path / file
            try:
                self._files[file] = self._stack.enter_context(layout.read_file(path, _mapped))
            except SafetensorError as error:
                told = f"the file cannot be read: {error}"
                raise DamagedCheckpointError(told, str(path), "bring it back from a copy") from None
        return self._files[file]


def _mapped(path: Path) -> Any:
    with path.open("rb") as file:  # the errors of `safe_open` have no number
        file.read(1)
    return safe_open(path, framework="pt")


def find_together(folder: Path, back: int = 1) -> tuple[Found, list[str]]:
    """The newest sound checkpoint, found by all ranks together; damaged ones after it are put aside.

    Args:
        folder: The run's `checkpoints/`, on a file system that all ranks see.
        back: Where to begin: 2 is the checkpoint before the newest; the oldest where there are fewer.

    Returns:
        What was found, the same on every rank, and a line for each that was skipped.

    Raises:
        CheckpointError: Every checkpoint is damaged, or the newest is of another version.
    """
    ranks = Ranks()

    def problem(checkpoint: Path) -> str:
        told = ranks.exchange(problem_of(checkpoint, ranks.rank, ranks.world_size))
        return "; ".join(dict.fromkeys(text for text in told if text))

    steps = ranks.exchange(layout.complete_steps(folder))[0]
    found = newest_sound(folder, steps[: max(len(steps) - back + 1, 1)], problem)
    lines = put_aside(found) if ranks.rank == 0 else []
    return found, list(ranks.exchange(lines)[0])


def restore(engine: Any, reader: CheckpointReader, seed: int) -> None:
    """Put a checkpoint's weights, optimizer state and random states into an engine.

    Where another number of ranks wrote it, or ranks that shared the matrices of the model in other groups, there are no
    random states for these: they get new streams.

    Args:
        engine: A DeepSpeed engine of the same model, at any stage.
        reader: The checkpoint.
        seed: Of the run.

    Raises:
        CheckpointError: The checkpoint belongs to another model.
    """
    _check_same_model(engine, reader)
    for held in slices_to_fill(engine):
        for key, tensor in held.tensors.items():
            tensor.copy_(reader.read(held.name, key, held.start, held.numel, held.columns))
    set_optimizer_step(engine, int(reader.state["optimizer_step"]))
    restore_loss_scale(engine, reader.state["loss_scale"])
    _restore_working_weights(engine, reader)
    restore_buffers(engine.module, reader.buffers())
    rank, together = torch.distributed.get_rank(), ranks_per_model(engine)
    wrote_it = (reader.world_size, reader.state.get("ranks_per_model", 1))
    alike = wrote_it == (torch.distributed.get_world_size(), together)
    states = reader.random_states(rank) if alike else {}
    if states:  # what was taken over from DeepSpeed has none
        restore_random_states(states)
    else:
        seed_generators(seed, rank // together, int(reader.state["step"]))


def _check_same_model(engine: Any, reader: CheckpointReader) -> None:
    shapes = plain_shapes(engine.module)
    if shapes != reader.shapes:
        odd = sorted(
            name for name in shapes.keys() | reader.shapes.keys() if shapes.get(name) != reader.shapes.get(name)
        )
        name = odd[0]
        raise CheckpointError(
            f"it is of another model: {name} is {reader.shapes.get(name)} there and {shapes.get(name)} here",
            str(reader.path),
            "give this run another name",
        )


@torch.no_grad()
def _restore_working_weights(engine: Any, reader: CheckpointReader) -> None:
    """The weights the forward pass reads, in the model's own precision; of what does not learn there are no others."""
    for name, parameter in engine.module.named_parameters():
        if not hasattr(parameter, "ds_id"):
            _read_into(parameter.data.view(-1), engine, reader, name, parameter, 0)
            continue
        size = parameter.ds_tensor.ds_numel
        start = size * torch.distributed.get_rank(parameter.ds_process_group)
        numel = max(min(size, parameter.ds_numel - start), 0)
        with partition_to_fill(parameter) as values:
            _read_into(values[:numel], engine, reader, name, parameter, start)
        if parameter.numel() == parameter.ds_numel:  # small ones are kept whole between steps
            _read_into(parameter.data.view(-1), engine, reader, name, parameter, 0)
        # The node's second copy (hpZ) is of the weights before: without it the next pass makes a new one.
        parameter.ds_secondary_tensor = None


def _read_into(
    values: torch.Tensor, engine: Any, reader: CheckpointReader, name: str, parameter: Any, start: int
) -> None:
    for piece in plain_pieces(engine.module, name, parameter, start, values.numel()):
        part = reader.read(piece.name, MASTER, piece.start, piece.numel, piece.columns)
        values.narrow(0, piece.offset, piece.numel).copy_(part)
