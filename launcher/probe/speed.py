"""How fast each accelerator is, and who reaches whom: within hosts, from host to host, and all at once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence

from launcher import units
from launcher.probe import pairs as tournament
from launcher.probe.outliers import slow_ones
from launcher.probe.session import Host, Session
from launcher.probe.wire import Message

FREE_SHARE = 0.9
"""Of an accelerator's memory that others have free: less is somebody's process (assumption)."""
WITHIN, ACROSS = "all-reduce within hosts", "all-reduce across hosts"
GB = 1e9


def compute(session: Session) -> None:
    """Arithmetic and memory of every rank's device, each kind among its own."""
    orders: dict[int, Message] = {rank: {"do": "compute"} for rank in session.ranks()}
    answers = session.ask_ranks("compute", orders, 2 * session.terms.round_s)
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


def play_pairs(session: Session) -> None:
    """Every host streams to some others and back; those in doubt meet further ones."""
    hosts = list(session.hosts)
    games = tournament.Tournament(len(hosts), session.terms.good_share(""), session.terms.least_bytes_per_s)
    for pairs in tournament.first_rounds(len(hosts)):
        _play(session, games, hosts, pairs)
    # One round is kept for all at once.
    while len(session.report.rounds) < tournament.most_rounds(len(hosts)) - 1 and (more := games.doubtful_round()):
        _play(session, games, hosts, more)
    if games.best:
        _tell_pairs(session, games, hosts)


def _play(
    session: Session, games: tournament.Tournament, hosts: Sequence[Host], pairs: Sequence[tournament.Pair]
) -> None:
    """Measure pairs at the same time."""
    orders: dict[int, Message] = {}
    for one, other in pairs:
        caller, called = hosts[one], hosts[other]
        terms: Message = {"secret": secrets.token_hex(16), "seconds": session.terms.round_s / 6}
        orders[called.leader] = {"do": "answer", "host": caller.name, **terms}
        orders[caller.leader] = {"do": "call", "host": called.name, "address": called.address, **terms}
        orders[caller.leader]["port"] = called.port
    number = 1 + sum(one.name.startswith("pairs") for one in session.report.rounds)
    with session.round(f"pairs {number}", len(orders)) as answered:
        answers = session.board.ask(orders, session.terms.round_s)
        answered.append(len(answers))
    session.tell_lost()
    for pair in pairs:
        ends = [answers[leader].said if leader in answers else {} for leader in (hosts[n].leader for n in pair)]
        games.record(pair, min(float(end.get("bytes_per_s", 0.0)) for end in ends))


def _tell_pairs(session: Session, games: tournament.Tournament, hosts: Sequence[Host]) -> None:
    verdict = games.verdict()
    gone = set(session.report.excluded)  # lost on the way: nothing reached them, and that was told
    for number in verdict.hosts:
        name = hosts[number].name
        if name in gone:
            continue
        own = [speed for pair, speed in games.best.items() if number in pair]
        told = f"{name}: {_speed(max(own))} at best with {len(own)} other hosts; {_speed(verdict.reference)} elsewhere"
        session.leave_out(name, "link", told, "see its cable, port and interface (ethtool), and what else uses them")
    for pair in verdict.links:
        one, other = (hosts[number].name for number in pair)
        if {one, other} & gone:
            continue
        told = f"{one} – {other}: {_speed(games.best[pair])}"
        if len(games.best) == 1:
            fix = "nothing tells which of the two it is: ask for a third host, and the check can"
            session.report.add("link", "wrong", told, fix=fix)
        else:
            told = f"{told}; {_speed(verdict.reference)} elsewhere, with both of them"
            fix = "see what lies between the two; leaving one of them out is enough"
            session.leave_out(other, "link", told, fix)
    if not verdict.hosts and not verdict.links:
        span = f"{_speed(min(games.best.values()))} to {_speed(max(games.best.values()))}"
        session.report.add("links", "ok", f"{span}, TCP, pairs measured: {len(games.best)}")


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


def _speed(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s" if bytes_per_s else "nothing came through"
