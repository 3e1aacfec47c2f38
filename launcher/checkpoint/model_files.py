"""A checkpoint's weights as the safetensors files of a transformers folder, streamed: a layer in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from launcher.checkpoint.load import CheckpointReader
from launcher.checkpoint.tensor_file import BLOCK_BYTES, Described, DurableFile, Layout, StreamedFile, aligned_buffer
from launcher.models.saved import Unit, convert, saved_units

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write_model_files(model: PreTrainedModel, reader: CheckpointReader, folder: Path, shard_bytes: int) -> None:
    """Write all weights, in several files where they are larger than one should be.

    Args:
        model: On the meta device, its weights tied.
        reader: Has their values.
        folder: Where to.
        shard_bytes: Most bytes of tensors in a file (a tensor that is larger has one to itself).
    """
    units = saved_units(model)
    shards = _cut([tensor for unit in units for tensor in _described(unit)], shard_bytes)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [WHOLE]
    values = _values(model, reader, units)
    staging = aligned_buffer(BLOCK_BYTES)
    for name, shard in zip(names, shards, strict=True):
        with DurableFile(folder / name) as file:
            stream = StreamedFile(file, Layout(shard), staging)
            for _ in shard:
                stream.add(next(values))
            stream.finish()
    if len(shards) > 1:
        total = sum(_num_bytes(tensor) for shard in shards for tensor in shard)
        index = {
            "metadata": {"total_parameters": model.num_parameters(), "total_size": total},
            "weight_map": {tensor[0]: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _values(model: PreTrainedModel, reader: CheckpointReader, units: list[Unit]) -> Iterator[torch.Tensor]:
    buffers = reader.buffers()
    for unit in units:
        own = {name: buffers[name] if name in buffers else reader.read_whole(name) for name in unit.sources.values()}
        converted = convert(model, unit, own)
        del own
        for name in list(converted):
            yield converted.pop(name)


def _described(unit: Unit) -> list[Described]:
    return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in unit.saved.items()]


def _num_bytes(tensor: Described) -> int:
    return tensor[1].itemsize * torch.Size(tensor[2]).numel()


def _cut(tensors: list[Described], shard_bytes: int) -> list[list[Described]]:
    """Consecutive tensors, as many as fit into each file."""
    shards: list[list[Described]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + _num_bytes(tensor) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += _num_bytes(tensor)
    return shards
