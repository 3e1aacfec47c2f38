"""Who is there, and whether all hosts are made of the same: code, recipe, shards, versions, clocks, one file system."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from launcher import units
from launcher.doctor.machine import LEAST_SHM_BYTES
from launcher.probe.report import things
from launcher.probe.session import Host, Session, spans_of
from launcher.probe.wire import Message

CLOCKS = 5
"""Times that clocks are asked; the answer that came back soonest counts."""
MOST_OFFSET_S = 1.0
"""Clocks further apart make logs of several hosts hard to read (assumption; munge itself refuses at 300 s)."""
LEAST_MEMORY_SHARE = 0.1
"""Of a host's memory that is free before a run (assumption)."""
MEND = {
    "code": "start all hosts from one folder that they share, or bring their checkouts to one commit",
    "recipe": "give all hosts the same file and overrides",
    "ds_config": "give all hosts the same file",
    "shards": "copy the folder there again (pretrain verify DIR names the file), or put it where all hosts see it",
    "driver": "the same driver on all hosts, or --exclude those that differ",
}
"""What must be the same → what to do where it is not."""


def call_the_roll(session: Session) -> None:
    """Wait for all ranks, and name the hosts of those that never come."""
    board, terms, report = session.board, session.terms, session.report
    with session.round("roll call", terms.world_size) as answered:
        board.roll_call(lambda hello: stranger(hello, terms.world_size), terms.world_size, terms.roll_call_s)
        answered.append(len(board.hellos))
    by_host: dict[str, list[int]] = {}
    for rank in sorted(board.hellos):
        by_host.setdefault(str(board.hellos[rank]["host"]), []).append(rank)
    for name, ranks in by_host.items():
        hello = board.hellos[ranks[0]]
        # Rank 0 dials itself, maybe over loopback; the others know the address that leads to it.
        address = board.address if 0 in ranks and board.address else str(hello["at"])
        session.admit(Host(name, ranks, address, int(hello["port"])))
    for trouble in board.refused:
        fix = "start all ranks by one launcher, and end what is left of another run"
        report.add("ranks", "wrong", trouble, fix=fix)
    missing = sorted(set(range(terms.world_size)) - board.hellos.keys())
    if missing:
        _tell_missing(session, missing)
    else:
        report.add("ranks", "ok", f"{terms.world_size} on {things(len(session.hosts), 'host')}")


def stranger(hello: Message, world_size: int) -> str:
    """Why a hello is not of a rank of this run; empty where it is."""
    rank, size = hello.get("rank"), hello.get("world_size")
    if size != world_size:
        return f"says that there are {size} ranks, rank 0 says {world_size}"
    kinds = {"rank": int, "host": str, "at": str, "port": int}
    is_whole = all(isinstance(hello.get(key), kind) for key, kind in kinds.items())
    return "" if is_whole and 0 <= int(str(rank)) < world_size else "is no rank of this run"


def _tell_missing(session: Session, missing: Sequence[int]) -> None:
    """Name the hosts that never came; where nobody knows their names, their ranks."""
    expected, patience = session.terms.expected, f"{session.terms.roll_call_s:g} s"
    if not expected:
        fix = "see those ranks' own output; with --hostfile FILE the check can name their hosts"
        session.report.add("ranks", "wrong", f"no word of rank {spans_of(missing)} in {patience}", fix=fix)
        return
    num_hosts = len(set(expected))
    if num_hosts > 2 and 2 * len(session.hosts) < num_hosts:  # then this host may be the one that is cut off
        found = f"{len(session.hosts)} of {num_hosts} hosts came in {patience}: too few to say who is cut off"
        session.report.add("ranks", "unfit", found, fix="see the network between all of them")
        return
    for name in dict.fromkeys(expected[rank] for rank in missing):
        ranks = [rank for rank in missing if expected[rank] == name]
        fix = "see that host: it is down or cut off, or its processes do not start"
        session.leave_out(name, "ranks", f"{name}: no word of rank {spans_of(ranks)} in {patience}", fix)


def compare(session: Session) -> None:
    """What must be the same everywhere; a host that differs from most is named, with both values."""
    facts = _facts(session)
    for error, names in _grouped((name, error) for name, fact in facts.items() for error in fact["errors"]).items():
        session.report.add("run", "wrong", f"{_some(names, len(facts))}: {error[0]}", fix=error[1], hosts=names)
    same = []
    for key in dict.fromkeys(key for fact in facts.values() for key in fact["same"]):
        values = {name: str(fact["same"].get(key) or "none") for name, fact in facts.items()}
        if len(set(values.values())) == 1:
            same.append(key)
            continue
        usual = _usual(list(values.values()))
        for value, names in _grouped((name, value) for name, value in values.items() if value != usual).items():
            state: Any = "note" if key == "driver" else "wrong"
            fix = MEND.get(key.split()[0], "make the environments alike: pip install -c constraints.txt")
            session.report.add(
                key, state, f"{_some(names, len(facts))}: {value}; others: {usual}", fix=fix, hosts=names
            )
    if same:
        session.report.add("the same", "ok", ", ".join(same))


def look_for_room(session: Session) -> None:
    """What there must be enough of."""
    busy: dict[str, str] = {}
    for name, fact in _facts(session).items():
        room = fact["room"]
        needed, free = room.get("needed_bytes", 0), room.get("disk_bytes", 0)
        if free < needed:
            told = f"{name}: {units.size(free)} free in {room['runs']}, the checkpoints take {units.size(needed)}"
            session.report.add("disk", "wrong", told, fix="runs=FOLDER on a larger disk", hosts=[name])
        memory = room.get("memory", {"free_bytes": 1, "total_bytes": 1})
        if memory["free_bytes"] < LEAST_MEMORY_SHARE * memory["total_bytes"]:
            told = f"{name}: {units.size(memory['free_bytes'])} of {units.size(memory['total_bytes'])} free"
            session.report.add("memory", "note", told, fix="see which processes hold the rest", hosts=[name])
        if room.get("load", 0.0) > room.get("cores", 1):
            busy[name] = f"{name} {room['load']:.0f} on {room['cores']} cores"
        shm = room.get("shm_bytes", LEAST_SHM_BYTES)
        if shm < LEAST_SHM_BYTES:
            fix = "remove what dead processes left there; in a container --ipc=host"
            session.report.add("/dev/shm", "note", f"{name}: {units.size(shm)} free", fix=fix, hosts=[name])
    if busy:
        told = f"before the run: {', '.join(busy.values())}"
        session.report.add("load", "note", told, fix="see what else runs there", hosts=list(busy))


def read_clocks(session: Session) -> None:
    """Each host's clock against rank 0's, as NTP measures it: its time less the middle of asking and answering."""
    measured: dict[str, list[tuple[float, float]]] = {}
    for _ in range(CLOCKS):
        for name, answer in session.ask_leaders({"do": "clock"}).items():
            trip = answer.came_at - answer.asked_at
            offset = float(answer.said["time"]) - (answer.asked_at + answer.came_at) / 2
            measured.setdefault(name, []).append((trip, offset))
    offsets = {name: min(found)[1] for name, found in measured.items()}
    if not offsets:
        return
    middle = median(offsets.values())  # rank 0's own clock may be the one that is off
    off = {name: offset - middle for name, offset in offsets.items() if abs(offset - middle) > MOST_OFFSET_S}
    for name, offset in off.items():
        told = f"{name}: {offset:+.1f} s off the others'"
        session.report.add("clocks", "note", told, fix="chronyc makestep on that host", hosts=[name])
    if not off and len(offsets) > 1:
        widest = max(offsets.values()) - min(offsets.values())
        session.report.add("clocks", "ok", f"within {1000 * widest:.1f} ms of each other")


def look_for_mark(session: Session, mark: Path) -> None:
    """A checkpoint is written by all ranks into one folder: every host must see what rank 0 writes there."""
    answers = session.ask_leaders({"do": "look", "path": str(mark.absolute())})
    blind = [name for name, answer in answers.items() if not answer.said.get("seen")]
    folder = mark.absolute().parent
    if blind:
        told = f"{', '.join(blind)}: what rank 0 writes into {folder} is not seen there"
        fix = "runs=FOLDER on a file system that all hosts share"
        session.report.add("run's folder", "wrong", told, fix=fix, hosts=blind)
    elif len(answers) > 1:
        session.report.add("run's folder", "ok", f"{folder}: one for all hosts")


def _facts(session: Session) -> dict[str, dict[str, Any]]:
    """Host → what its leader said of it."""
    nothing: dict[str, Any] = {"same": {}, "room": {}, "errors": []}
    return {host.name: session.board.hellos[host.leader].get("facts") or nothing for host in session.hosts}


def _usual(values: Sequence[str]) -> str:
    """What most hosts say; of as many, what the first one says."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value == values[0]))


def _grouped(items: Iterable[tuple[str, Any]]) -> Mapping[Any, list[str]]:
    """What hosts say → those that say it."""
    groups: dict[Any, list[str]] = {}
    for name, said in items:
        groups.setdefault(tuple(said) if isinstance(said, list) else said, []).append(name)
    return groups


def _some(names: Sequence[str], num_hosts: int) -> str:
    return "all hosts" if len(names) == num_hosts > 1 else ", ".join(names)
