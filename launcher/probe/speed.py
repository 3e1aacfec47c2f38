"""How fast each accelerator is, and how fast they add up: within hosts, and all at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from launcher import units
from launcher.probe.outliers import slow_ones
from launcher.probe.session import Session
from launcher.probe.wire import Message

FREE_SHARE = 0.9
"""Of an accelerator's memory that others have free: less is somebody's process (assumption)."""
WITHIN, ACROSS = "all-reduce within hosts", "all-reduce across hosts"
GB = 1e9


def compute(session: Session) -> None:
    """Arithmetic and memory of every rank's device, each kind among its own."""
    orders: dict[int, Message] = {rank: {"do": "compute"} for rank in session.ranks()}
    answers = session.ask_ranks("compute", orders, 2 * session.terms.round_s)
    session.has_fabric = any(answer["device"] != "cpu" for answer in answers.values())
    devices = sorted({str(answer["device"]) for answer in answers.values()})
    for device in devices:
        _tell_device(session, device, {rank: said for rank, said in answers.items() if said["device"] == device})
    if len(devices) > 1:
        fix = "the slowest sets the pace: ask for one kind (--constraint, --gres)"
        session.report.add("accelerators", "note", f"several kinds: {', '.join(devices)}", fix=fix)


def _tell_device(session: Session, device: str, answers: Mapping[int, Message]) -> None:
    share = session.terms.good_share(device)
    for key, name, unit, scale in (
        ("matmul_flops", "matmul", "TFLOP/s", 1e12),
        ("copy_bytes_per_s", "memory speed", "GB/s", GB),
    ):
        speeds = {rank: float(answer[key]) for rank, answer in answers.items()}
        slow = slow_ones(speeds, share)
        for rank, part in slow.items():
            told = f"{session.where(rank)}: {speeds[rank] / scale:.3g} {unit}, {part:.0%} of the others'"
            fix = "see its temperature and clocks (nvidia-smi -q -d PERFORMANCE), and other processes there"
            session.leave_out(session.host_of(rank).name, name, told, fix)
        if not slow:
            span = f"{min(speeds.values()) / scale:.3g} to {max(speeds.values()) / scale:.3g} {unit}"
            session.report.add(name, "ok", f"{span} a rank ({device})")
    free = {rank: float(answer["free_bytes"]) for rank, answer in answers.items() if "free_bytes" in answer}
    for rank in slow_ones(free, FREE_SHARE):
        told = f"{session.where(rank)}: {units.size(free[rank])} free, others have more"
        fix = "another process holds it: nvidia-smi on that host"
        session.leave_out(session.host_of(rank).name, "device memory", told, fix)


def reduce_within(session: Session) -> None:
    """The ranks of each host among themselves."""
    groups = [host.ranks for host in session.hosts if len(host.ranks) > 1]
    if not groups:
        return
    answers = _reduce(session, WITHIN, groups)
    speeds = {
        group[0]: min(float(answers[rank]["bytes_per_s"]) for rank in group)
        for group in groups
        if answers.keys() >= set(group)
    }
    if not speeds:
        return
    backend = str(answers[next(iter(speeds))]["backend"])
    slow = slow_ones(speeds, session.terms.good_share("cpu" if backend == "gloo" else backend))
    for leader, part in slow.items():
        name = session.host_of(leader).name
        told = f"{name}: {speeds[leader] / GB:.3g} GB/s, {part:.0%} of the others'"
        session.leave_out(name, WITHIN, told, "nvidia-smi topo -m and nvidia-smi nvlink -s on that host")
    if not slow:
        span = f"{min(speeds.values()) / GB:.3g} to {max(speeds.values()) / GB:.3g} GB/s"
        session.report.add(WITHIN, "ok", f"{span} ({backend})")


def reduce_across(session: Session) -> None:
    """All ranks that are left at once, as the run will."""
    ranks = session.ranks()
    if len(session.hosts) < 2:
        return
    answers = _reduce(session, ACROSS, [ranks])
    if answers.keys() >= set(ranks):
        slowest = min(float(answer["bytes_per_s"]) for answer in answers.values())
        told = f"{slowest / GB:.3g} GB/s, {len(ranks)} ranks ({answers[ranks[0]]['backend']})"
        session.report.add(ACROSS, "ok", told)


def _reduce(session: Session, name: str, groups: Sequence[Sequence[int]]) -> dict[int, Message]:
    """Let each group of ranks add up a vector; returns what came out right."""
    began, patience = time.monotonic(), 2 * session.terms.round_s
    addresses = {group[0]: session.host_of(group[0]).address for group in groups}
    stores = session.board.ask(
        {leader: {"do": "store", "address": address} for leader, address in addresses.items()}, patience
    )
    orders: dict[int, Message] = {}
    for group in groups:
        said = stores[group[0]].said if group[0] in stores else {}
        for number, rank in enumerate(group if "port" in said else ()):
            orders[rank] = {"do": "reduce", "address": addresses[group[0]], "port": said["port"], "rank": number}
            orders[rank] |= {"world_size": len(group), "seconds": session.terms.round_s}
        if "error" in said:
            found = f"{session.where(group[0])}: {said['error']}"
            session.leave_out(session.host_of(group[0]).name, name, found, "see that host")
    left = max(patience - (time.monotonic() - began), session.terms.round_s)
    answers = session.ask_ranks(name, orders, left)
    for rank, answer in answers.items():
        if not answer["right"]:
            fix = "an accelerator or a link there changes bits: have it looked at"
            session.leave_out(session.host_of(rank).name, name, f"{session.where(rank)}: the sum is wrong", fix)
    return {rank: answer for rank, answer in answers.items() if answer["right"]}
