"""Many hosts in one process: every rank is a thread with sockets of its own, and only accelerators are made up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.probe.agent import Agent
from launcher.probe.coordinator import lead
from launcher.probe.report import Report
from launcher.probe.session import Terms
from launcher.probe.switchboard import Switchboard

GOOD = 1.0e6
"""Bytes a second between two hosts: little enough for a busy core to pass on for 32 pairs at once."""
FACTS: dict[str, Any] = {
    "same": {"code": "c0de", "recipe": "1234", "shards law": "5678"},
    "room": {"needed_bytes": 10, "disk_bytes": 20, "runs": "/runs", "memory": {"free_bytes": 9, "total_bytes": 10}},
    "errors": [],
}


@dataclass
class MadeUpBench:
    """Speeds as given."""

    flops: float = 1e12
    hangs: bool = False
    dies: Callable[[], None] | None = None
    is_right: bool = True
    fabric: float = 1e9

    def compute(self) -> dict[str, Any]:
        """Told, or never told."""
        if self.dies is not None:
            self.dies()
        if self.hangs:
            threading.Event().wait(60)
        return {"device": "made up", "matmul_flops": self.flops, "copy_bytes_per_s": 1e12}

    def open_store(self, address: str) -> int:
        """Nobody meets there."""
        return 1

    def reduce(self, address: str, port: int, rank: int, world_size: int, seconds: float) -> dict[str, Any]:
        """Told."""
        return {"backend": "made up", "bytes_per_s": self.fabric, "right": self.is_right or world_size == 2}


@dataclass
class Faults:
    """What is wrong with which host, by its number."""

    absent: set[int] = field(default_factory=set)
    hang: set[int] = field(default_factory=set)
    die: set[int] = field(default_factory=set)
    slow_link: Mapping[int, float] = field(default_factory=dict)
    """Host → bytes a second it sends at most."""
    slow_pair: Mapping[frozenset[int], float] = field(default_factory=dict)
    flops: Mapping[int, float] = field(default_factory=dict)
    fabric: Mapping[int, float] = field(default_factory=dict)
    """Host → bytes a second between its accelerator and any other."""
    wrong_sum: set[int] = field(default_factory=set)
    same: Mapping[int, dict[str, str]] = field(default_factory=dict)
    room: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    errors: Mapping[int, list[list[str]]] = field(default_factory=dict)
    world_size: Mapping[int, int] = field(default_factory=dict)
    """Host → the number of ranks it believes in."""


def name(number: int) -> str:
    """Of a host."""
    return f"host{number:02d}"


def check(num_hosts: int, faults: Faults, *, round_s: float = 6.0, roll_call_s: float = 20.0, **terms: Any) -> Report:
    """A check of so many hosts with a rank each, led over real connections."""
    board = Switchboard(0)
    threads = [
        threading.Thread(target=_live, args=(number, num_hosts, faults, board.port), daemon=True)
        for number in range(num_hosts)
        if number not in faults.absent
    ]
    for thread in threads:
        thread.start()
    settings = {"expected": [name(number) for number in range(num_hosts)], "least_bytes_per_s": 1.0, **terms}
    try:
        report = lead(
            board, Terms(world_size=num_hosts, round_s=round_s, roll_call_s=roll_call_s, **settings), mark=None
        )
    finally:
        board.close(0)
    for thread in threads:
        thread.join(20)
    return report


def _live(number: int, num_hosts: int, faults: Faults, port: int) -> None:
    agent: Agent | None = None

    def die() -> None:
        assert agent is not None
        agent.close()
        threading.Event().wait(60)

    def pace(other: str) -> Callable[[int], float]:
        speed = min(faults.slow_link.get(number, GOOD), faults.slow_pair.get(frozenset((number, int(other[4:]))), GOOD))
        began, sent = 0.0, 0

        def wait(num_bytes: int) -> float:
            nonlocal began, sent
            began = began or time.monotonic()
            sent += num_bytes
            return max(began + sent / speed - time.monotonic(), 0.0)

        return wait

    agent = Agent(
        rank=number,
        host=name(number),
        hello={
            "world_size": faults.world_size.get(number, num_hosts),
            "facts": {
                "same": {**FACTS["same"], **faults.same.get(number, {})},
                "room": {**FACTS["room"], **faults.room.get(number, {})},
                "errors": faults.errors.get(number, []),
            },
        },
        bench=MadeUpBench(
            flops=faults.flops.get(number, 1e12),
            hangs=number in faults.hang,
            dies=die if number in faults.die else None,
            is_right=number not in faults.wrong_sum,
            fabric=faults.fabric.get(number, 1e9),
        ),
        pace=pace,
    )
    try:
        agent.run("127.0.0.1", port, 20.0)
    except Exception:  # those that die or are refused
        return
