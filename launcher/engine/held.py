"""What a rank's tensors take, counted from the tensors themselves.

RSS does not tell it: on a CPU the allocator keeps what was freed, and stage 3's gathered layers come and go.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from launcher.units import StateBytes


def held_bytes(engine: Any) -> StateBytes:
    """Bytes of the storages this process holds now; those of a storage that several tensors see count once.

    Args:
        engine: DeepSpeed engine; after a backward pass its gradients are there, after a step they mostly are not.
    """
    gc.collect()
    seen: set[int] = set()
    optimizer = engine.optimizer
    parameters = _bytes_of(_weights(engine.module), seen)
    gradients = _bytes_of(_gradients(engine, optimizer), seen)
    state = _bytes_of(_optimizer_state(engine, optimizer), seen)
    buffers = _bytes_of((thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)), seen)
    return StateBytes(parameters=parameters, gradients=gradients, optimizer=state, buffers=buffers)


def _weights(module: Any) -> Iterator[torch.Tensor]:
    for parameter in module.parameters():
        yield parameter.data
        for name in ("ds_tensor", "ds_secondary_tensor"):  # of ZeRO stage 3: this rank's part, its node's copy
            part = getattr(parameter, name, None)
            if part is not None:
                yield part


def _gradients(engine: Any, optimizer: Any) -> Iterator[torch.Tensor]:
    for parameter in engine.module.parameters():
        yield from _tensors((parameter.grad, getattr(parameter, "grad_accum", None)))
    for name in (
        "averaged_gradients",
        "all_grad_tensors",
        "grad_partitions_flat_buffer",
        "accumulated_grads_in_cpu",
        "fp32_groups_gradients_flat",
    ):
        yield from _tensors(getattr(optimizer, name, None))
    yield from (master.grad for master in _masters(engine, optimizer) if master.grad is not None)


def _optimizer_state(engine: Any, optimizer: Any) -> Iterator[torch.Tensor]:
    yield from _masters(engine, optimizer)
    yield from _tensors(list(engine.basic_optimizer.state.values()))


def _masters(engine: Any, optimizer: Any) -> Iterator[torch.Tensor]:
    """The fp32 weights the optimizer steps, where they are not the model's own."""
    names = (
        "fp32_partitioned_groups_flat",
        "single_partition_of_fp32_groups",
        "fp32_groups_flat_partition",
        "fp32_groups",
    )
    for name in names:
        yield from _tensors(getattr(optimizer, name, None))
    yield from _tensors([group["params"] for group in engine.basic_optimizer.param_groups])


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _bytes_of(tensors: Iterable[torch.Tensor], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        if tensor.device.type == "meta" or tensor.layout != torch.strided:
            continue
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen and storage.nbytes():
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total
