"""What a rank's parameters are called, and where their values lie, in transformers' model, whoever shares what.

Where ranks share experts (`models.expert_parallel`) or matrices (`models.tensor_parallel`) the engine's module has
parameters of other names or shapes. A range of one is a few ranges of transformers' parameters, so what is saved knows
nothing of who held what.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from launcher.models.expert_parallel import is_shared
from launcher.models.tensor_parallel import shard_of


class Columns(NamedTuple):
    """Some columns of a matrix, side by side: [rows, width] of [rows, all]."""

    first: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a range of a parameter, where transformers keeps it."""

    name: str
    """The parameter's name in transformers' model."""
    shape: tuple[int, ...]
    """Of that whole parameter."""
    start: int
    """First value, in that parameter, or in its columns, flattened."""
    numel: int
    """Values."""
    offset: int
    """Of the first one in the range that was asked for."""
    columns: Columns | None = None
    """The columns it is a range of; None for the whole parameter."""


def plain_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Every parameter's whole shape, by transformers' names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in module.named_parameters():
        numel = prod(_shape(parameter))
        shapes |= {piece.name: piece.shape for piece in plain_pieces(module, name, parameter, 0, numel)}
    return shapes


def plain_pieces(module: Any, name: str, parameter: Any, start: int, numel: int) -> Iterator[Piece]:
    """A range of a parameter of the engine's module as ranges of transformers' parameters; mostly itself.

    Args:
        module: The engine's.
        name: The parameter's, there.
        parameter: It; partitioned or whole.
        start: First value of the range, in the flattened parameter.
        numel: Values in the range.
    """
    owner, _, tensor = name.rpartition(".")
    block, _, part = owner.rpartition(".")
    if part == "experts" and is_shared(module.get_submodule(block)):
        layer = module.get_submodule(block)
        yield from _expert_pieces(layer, block, tensor, _shape(parameter), start, numel)
        return
    block = owner.removesuffix(".router.gate")
    if block != owner and is_shared(module.get_submodule(block)):
        name = f"{block}.gate.{tensor}"
    shard = shard_of(parameter)
    if shard is None:
        yield Piece(name=name, shape=_shape(parameter), start=start, numel=numel, offset=0)
    elif shard.dim == 0:
        before = shard.first * prod(shard.shape[1:])
        yield Piece(name=name, shape=shard.shape, start=before + start, numel=numel, offset=0)
    else:
        columns = Columns(shard.first, shard.size)
        yield Piece(name=name, shape=shard.shape, start=start, numel=numel, offset=0, columns=columns)


def _expert_pieces(
    layer: Any, block: str, tensor: str, shape: tuple[int, ...], start: int, numel: int
) -> Iterator[Piece]:
    """Of experts shared among ranks.

    A layer of DeepSpeed's AutoEP holds some of a block's experts in three tensors: w1 and w3 [e, F, H], w2 [e, H, F].
    In transformers' model they are rows of gate_up_proj [E, 2F, H] (w1, then w3) and of down_proj [E, H, F].

    e: experts of this rank   E: of all   F: width of an expert   H: width
    """
    num_here, rows, columns = shape
    size = rows * columns
    stacked = {"w1": ("gate_up_proj", 2, 0), "w3": ("gate_up_proj", 2, 1), "w2": ("down_proj", 1, 0)}
    own_name, num_parts, part = stacked[tensor]
    first = layer.ep_rank * num_here
    for index in range(start // size, -(-(start + numel) // size)):
        begin, end = max(start, index * size), min(start + numel, (index + 1) * size)
        yield Piece(
            name=f"{block}.experts.{own_name}",
            shape=(layer.num_experts, num_parts * rows, columns),
            start=((first + index) * num_parts + part) * size + begin - index * size,
            numel=end - begin,
            offset=begin - start,
        )


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


class Block(NamedTuple):
    """A rectangle of a parameter, seen as a matrix of its last dimension."""

    first_row: int
    num_rows: int
    first_column: int
    num_columns: int
    offset: int
    """Of its first value in the range it is of; its rows follow each other there, whole."""


def blocks_of(start: int, numel: int, columns: Columns) -> Iterator[Block]:
    """A range of some columns, flattened, as at most three rectangles: end of a row, whole rows, beginning of one.

    Args:
        start: First value of the range.
        numel: Values in it.
        columns: What is flattened.
    """
    first, width = columns
    end = start + numel
    while start < end:
        row, within = divmod(start, width)
        whole_rows = 0 if within else (end - start) // width
        taken = whole_rows * width or min(width - within, end - start)
        yield Block(row, whole_rows or 1, first + within, width if whole_rows else taken, numel - (end - start))
        start += taken
