"""Slurm's shorthand for hosts and tasks."""

from __future__ import annotations

import re

from launcher.errors import ClusterError

_PIECE = re.compile(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*")
_TASKS = re.compile(r"^(\d+)(?:\(x(\d+)\))?$")


def expand_nodelist(text: str) -> list[str]:
    """The hosts of a node list, in order: `node[1-3,07],gpu` → node1, node2, node3, node07, gpu.

    Raises:
        ClusterError: It is no node list.
    """
    hosts = []
    rest = text
    while rest:
        match = _PIECE.match(rest)
        if match is None:
            raise ClusterError(f"{text!r} is no Slurm node list", "SLURM_STEP_NODELIST")
        hosts += _expand(match.group(), text)
        rest = rest[match.end() :].removeprefix(",")
    if not hosts:
        raise ClusterError("the Slurm node list is empty", "SLURM_STEP_NODELIST")
    return hosts


def tasks_per_node(text: str) -> list[int]:
    """Tasks of each node, in order: `2(x3),1` → 2, 2, 2, 1.

    Raises:
        ClusterError: It is no such list.
    """
    tasks: list[int] = []
    for part in text.split(","):
        match = _TASKS.match(part)
        if match is None:
            raise ClusterError(f"{text!r} is no list of tasks per node", "SLURM_STEP_TASKS_PER_NODE")
        tasks += [int(match.group(1))] * int(match.group(2) or 1)
    return tasks


def _expand(piece: str, text: str) -> list[str]:
    before, bracket, rest = piece.partition("[")
    if not bracket:
        return [piece]
    inside, _, after = rest.partition("]")
    names = []
    for part in inside.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ClusterError(f"{text!r} is no Slurm node list: {part!r} is no range", "SLURM_STEP_NODELIST")
        for number in range(int(first), int(last or first) + 1):
            names += _expand(f"{before}{number:0{len(first)}d}{after}", text)
    return names
