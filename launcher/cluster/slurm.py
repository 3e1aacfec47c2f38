"""Slurm's shorthand for hosts and tasks."""

from __future__ import annotations

import re

from launcher.errors import ClusterError

_PIECE = re.compile(r"[^,\[\]]+(?:\[[^\[\]]*\][^,\[\]]*)*")
_RANGE = re.compile(r"^([0-9]+)(?:-([0-9]+))?$")
_TASKS = re.compile(r"^([1-9][0-9]*)(?:\(x([1-9][0-9]*)\))?$")


def expand_nodelist(text: str, variable: str = "SLURM_STEP_NODELIST") -> list[str]:
    """The hosts of a node list, in order: `node[1-3,07],gpu` → node1, node2, node3, node07, gpu.

    Args:
        text: The list.
        variable: Where it was read.

    Raises:
        ClusterError: It is no node list.
    """
    hosts = []
    place = 0
    while True:
        match = _PIECE.match(text, place)
        if match is None or text[match.end() : match.end() + 1] not in ("", ","):
            raise _not_a_list(text, variable)
        hosts += _expand(match.group(), text, variable)
        if match.end() == len(text):
            return hosts
        place = match.end() + 1


def tasks_per_node(text: str, variable: str = "SLURM_STEP_TASKS_PER_NODE") -> list[int]:
    """Tasks of each node, in order: `2(x3),1` → 2, 2, 2, 1.

    Args:
        text: The list.
        variable: Where it was read.

    Raises:
        ClusterError: It is no such list.
    """
    tasks: list[int] = []
    for part in text.split(","):
        match = _TASKS.match(part)
        if match is None:
            raise ClusterError(
                f"{text!r} is no list of tasks per node",
                variable,
                "Slurm sets it, e.g. 2(x3),1 for three nodes of two tasks and one of one",
            )
        tasks += [int(match.group(1))] * int(match.group(2) or 1)
    return tasks


def _expand(piece: str, text: str, variable: str) -> list[str]:
    before, bracket, rest = piece.partition("[")
    if not bracket:
        return [piece]
    inside, _, after = rest.partition("]")
    names = []
    for part in inside.split(","):
        match = _RANGE.match(part)
        if match is None:
            raise _not_a_list(text, variable, f": {part!r} is no range")
        first, last = match.group(1), match.group(2) or match.group(1)
        if int(last) < int(first):
            raise _not_a_list(text, variable, f": {part!r} counts down")
        for number in range(int(first), int(last) + 1):
            names += _expand(f"{before}{number:0{len(first)}d}{after}", text, variable)
    return names


def _not_a_list(text: str, variable: str, why: str = "") -> ClusterError:
    return ClusterError(f"{text!r} is no Slurm node list{why}", variable, "Slurm sets it, e.g. node[1-3,07],gpu")
