"""Which part of each parameter this rank holds in fp32, whatever ZeRO stage cut it.

A slice is a range of a parameter's flattened values. At stage 0 every rank holds everything; at stages 1 and 2 a rank
holds fragments of flat groups; at stage 3 it holds its partition of each parameter. Written as (name, start, numel)
they are all the same thing, so what is saved knows neither stage nor world size.

Slices come group by group, and the tensors of one may be touched until the next is asked for and no longer: of an
optimizer on NVMe only one group lies in memory at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from launcher.checkpoint.pieces import Columns, plain_pieces
from launcher.checkpoint.swapped import group_to_fill, group_to_read
from launcher.engine.process import ranks_per_model
from launcher.models.tensor_parallel import shard_of

MASTER = "master"
GroupVisit = Callable[[Any, int], AbstractContextManager[None]]
"""How a group of a stage-3 optimizer is held while its slices are looked at: (optimizer, number of the group)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSlice:
    """A range of one parameter, with its optimizer moments; where it learns, views of what the optimizer updates."""

    name: str
    """The parameter's name in the module."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """First value of the range, in the flattened parameter, or in its columns, flattened."""
    numel: int
    """Values in the range."""
    columns: Columns | None = None
    """The columns it is a range of; None for the whole parameter."""
    tensors: dict[str, torch.Tensor]
    """`master` and, of a parameter that learns, each moment (`exp_avg`, `exp_avg_sq`), fp32 [numel]."""
    mine_to_save: bool
    """Whether this rank writes it; a slice that several ranks hold is written by one."""


def held_slices(engine: Any) -> Iterator[HeldSlice]:
    """Every range this rank holds, the optimizer's state included (made first where no step has been taken yet).

    Args:
        engine: DeepSpeed engine at stage 0, 1, 2 or 3.

    Yields:
        Slices whose tensors hold until the next one is asked for: copy what is kept longer. What is written into them
        may be lost. Those of parameters that do not learn come last, and have a master only.
    """
    yield from _slices(engine, group_to_read)
    yield from _frozen(engine)


def slices_to_fill(engine: Any) -> Iterator[HeldSlice]:
    """What learns of them, to write into: what a slice's tensors hold when the next one is asked for stays."""
    return _slices(engine, group_to_fill)


def _slices(engine: Any, visit: GroupVisit) -> Iterator[HeldSlice]:
    prime_state(engine)
    parameters = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return _partitions(engine, parameters, visit)
    if stage in (1, 2):
        return _fragments(engine, parameters)
    return _whole_parameters(engine, parameters)


def prime_state(engine: Any) -> None:
    """Give AdamW the state it would make in its first step, where it has none."""
    optimizer = engine.basic_optimizer
    counts_in_tensor = isinstance(optimizer, torch.optim.AdamW)
    for group, master in enumerate(_masters(engine)):
        state = optimizer.state[master]
        if "exp_avg" in state:
            continue
        with _to_fill(engine, group):
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device) if counts_in_tensor else 0
            state["exp_avg"] = torch.zeros_like(master.data)
            state["exp_avg_sq"] = torch.zeros_like(master.data)


def optimizer_step(engine: Any) -> int:
    """How many steps AdamW has taken (skipped ones not counted)."""
    prime_state(engine)
    return max(int(engine.basic_optimizer.state[master]["step"]) for master in _masters(engine))


def set_optimizer_step(engine: Any, step: int) -> None:
    """Tell AdamW how many steps it has taken: its bias correction depends on it."""
    for master in _masters(engine):
        state = engine.basic_optimizer.state[master]
        if isinstance(state["step"], torch.Tensor):
            state["step"].fill_(float(step))
        else:
            state["step"] = step


def forget_steps(engine: Any) -> None:
    """Make AdamW's state what it is before the first step."""
    prime_state(engine)
    for group, master in enumerate(_masters(engine)):
        with _to_fill(engine, group):
            for key in ("exp_avg", "exp_avg_sq"):
                engine.basic_optimizer.state[master][key].zero_()
    set_optimizer_step(engine, 0)


def _to_fill(engine: Any, group: int) -> AbstractContextManager[None]:
    """A group's state in memory, wherever it lies else."""
    return group_to_fill(engine.optimizer, group) if engine.zero_optimization_stage() == 3 else nullcontext()


def _masters(engine: Any) -> list[torch.Tensor]:
    """The tensors AdamW updates: flat groups at stages 1 to 3, parameters or their fp32 copies at stage 0.

    At stage 3 the optimizer's own groups are empty but while it steps, so they cannot be asked.
    """
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    if stage in (1, 2):
        return _flat_partitions(engine.optimizer)
    return [tensor for group in engine.basic_optimizer.param_groups for tensor in group["params"]]


def _flat_partitions(optimizer: Any) -> list[torch.Tensor]:
    # BF16_Optimizer (stage 1 with fp32 gradient accumulation) has another name for the same thing.
    return list(getattr(optimizer, "fp32_groups_flat_partition", None) or optimizer.single_partition_of_fp32_groups)


def _moments(optimizer: torch.optim.Optimizer, flat: torch.Tensor, start: int, numel: int) -> dict[str, torch.Tensor]:
    state = optimizer.state[flat]
    return {key: state[key].view(-1).narrow(0, start, numel) for key in ("exp_avg", "exp_avg_sq")}


def _partitions(engine: Any, parameters: list[tuple[str, Any]], visit: GroupVisit) -> Iterator[HeldSlice]:
    optimizer = engine.optimizer
    by_group: dict[int, list[tuple[str, Any, int]]] = defaultdict(list)
    for name, parameter in parameters:
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        by_group[group].append((name, parameter, offset))
    for group, members in sorted(by_group.items()):
        with visit(optimizer, group):
            flat = optimizer.fp32_partitioned_groups_flat[group]
            for name, parameter, offset in members:
                yield from _partition_pieces(engine, name, parameter, flat, offset)


def _partition_pieces(engine: Any, name: str, parameter: Any, flat: torch.Tensor, offset: int) -> Iterator[HeldSlice]:
    start, numel = _own_range(parameter)
    tensors = {MASTER: flat.data.narrow(0, offset, numel), **_moments(engine.basic_optimizer, flat, offset, numel)}
    yield from _plain(engine, name, parameter, start, tensors, mine_to_save=numel > 0)


def _fragments(engine: Any, parameters: list[tuple[str, Any]]) -> Iterator[HeldSlice]:
    flats = _flat_partitions(engine.optimizer)
    for name, parameter in parameters:
        fragment = parameter._hp_mapping
        if fragment is None:
            continue
        here, there = fragment.lp_fragment_address, fragment.hp_fragment_address
        flat = flats[fragment.param_group_index]
        tensors = {
            MASTER: flat.data.narrow(0, there.start, there.numel),
            **_moments(engine.basic_optimizer, flat, there.start, there.numel),
        }
        yield from _plain(engine, name, parameter, here.start, tensors, mine_to_save=True)


def _whole_parameters(engine: Any, parameters: list[tuple[str, Any]]) -> Iterator[HeldSlice]:
    masters = _unfused_masters(engine)
    for index, (name, parameter) in enumerate(parameters):
        master = masters.get(id(parameter), parameter)
        tensors = {MASTER: master.data.view(-1), **_moments(engine.basic_optimizer, master, 0, master.numel())}
        yield from _plain(engine, name, parameter, 0, tensors, mine_to_save=_in_turn(engine, index))


def _frozen(engine: Any) -> Iterator[HeldSlice]:
    """Parameters that do not learn, as the forward pass reads them: no optimizer has a copy."""
    frozen = [(name, p) for name, p in engine.module.named_parameters() if not p.requires_grad]
    for index, (name, parameter) in enumerate(frozen):
        if not hasattr(parameter, "ds_id"):
            tensors = {MASTER: parameter.data.view(-1).float()}
            yield from _plain(engine, name, parameter, 0, tensors, mine_to_save=_in_turn(engine, index))
            continue
        start, numel = _own_range(parameter)
        tensors = {MASTER: parameter.ds_tensor.data.view(-1)[:numel].float()}
        yield from _plain(engine, name, parameter, start, tensors, mine_to_save=numel > 0)


def _own_range(parameter: Any) -> tuple[int, int]:
    """First value and number of values of this rank's partition of a parameter."""
    size = parameter.ds_tensor.ds_numel
    start = size * torch.distributed.get_rank(parameter.ds_process_group)
    return start, max(min(size, parameter.ds_numel - start), 0)  # the last ranks' partitions end in padding


def _in_turn(engine: Any, index: int) -> bool:
    """Whether this rank writes a parameter that all data-parallel ranks hold."""
    sharing = ranks_per_model(engine)
    return index % (torch.distributed.get_world_size() // sharing) == torch.distributed.get_rank() // sharing


def _plain(
    engine: Any, name: str, parameter: Any, start: int, tensors: dict[str, torch.Tensor], *, mine_to_save: bool
) -> Iterator[HeldSlice]:
    """A range of the engine's parameter as ranges of transformers' parameters."""
    first_of_group = torch.distributed.get_rank() % ranks_per_model(engine) == 0
    for piece in plain_pieces(engine.module, name, parameter, start, tensors[MASTER].numel()):
        yield HeldSlice(
            name=piece.name,
            shape=piece.shape,
            start=piece.start,
            numel=piece.numel,
            columns=piece.columns,
            tensors={key: tensor.narrow(0, piece.offset, piece.numel) for key, tensor in tensors.items()},
            # What ranks that share a model all have whole, the first of them writes.
            mine_to_save=mine_to_save and piece.numel > 0 and (first_of_group or shard_of(parameter) is not None),
        )


def _unfused_masters(engine: Any) -> dict[int, torch.Tensor]:
    """Half-precision parameter → its fp32 copy, in the optimizer DeepSpeed wraps around ours at stage 0."""
    if engine.optimizer is engine.basic_optimizer:
        return {}
    halves, masters = engine.optimizer.fp16_groups, engine.optimizer.fp32_groups
    return {id(h): m for group, copies in zip(halves, masters, strict=True) for h, m in zip(group, copies, strict=True)}
