"""Who reaches whom: pairs of hosts in a tournament, over TCP and over what accelerators reach each other by."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from launcher.probe.pairs import Pair, Tournament, first_rounds, most_rounds
from launcher.probe.report import things
from launcher.probe.session import Host, Session
from launcher.probe.wire import Message

TCP, FABRIC = "link", "link of accelerators"
SHARE_OF_ROUND = 6
"""A pair has a round's time for at most that many waits: for four connections, a store and an all-reduce."""


@dataclass(slots=True)
class Links:
    """What pairs have shown so far.

    Args:
        hosts: By the numbers that pairs have.
        games: Name of what was measured → its tournament.
    """

    hosts: Sequence[Host]
    games: dict[str, Tournament]
    round_trips_s: list[float] = field(default_factory=list)

    def doubtful_round(self) -> list[Pair]:
        """Pairs that a further round should measure."""
        return next((pairs for game in self.games.values() if (pairs := game.doubtful_round())), [])

    def record(self, pair: Pair, ends: Sequence[Message]) -> None:
        """Take in what both ends of a pair have measured."""
        for name, key in ((TCP, "bytes_per_s"), (FABRIC, "fabric_bytes_per_s")):
            if name in self.games:
                self.games[name].record(pair, min(float(end.get(key, 0.0)) for end in ends))
        self.round_trips_s += [float(end["round_trip_s"]) for end in ends if "round_trip_s" in end]


def play_pairs(session: Session) -> None:
    """Every host meets log2(hosts) others; those in doubt meet further ones."""
    hosts, terms = list(session.hosts), session.terms
    names = (TCP, FABRIC) if session.has_fabric else (TCP,)
    share = terms.good_share("")
    links = Links(hosts, {name: Tournament(len(hosts), share, terms.least_bytes_per_s) for name in names})
    for pairs in first_rounds(len(hosts)):
        _play(session, links, pairs)
    # One round is kept for all at once.
    while len(session.report.rounds) < most_rounds(len(hosts)) - 1 and (more := links.doubtful_round()):
        _play(session, links, more)
    for name, games in links.games.items():
        if games.best:
            _tell(session, links, name, games)


def _play(session: Session, links: Links, pairs: Sequence[Pair]) -> None:
    """Measure pairs at the same time."""
    number = 1 + sum(one.name.startswith("pairs") for one in session.report.rounds)
    with session.round(f"pairs {number}", 2 * len(pairs)) as answered:
        orders = dict(_orders(session, links, pairs))
        answers = session.board.ask(orders, session.terms.round_s)
        answered.append(len(answers))
    session.tell_lost()
    for pair in pairs:
        leaders = [links.hosts[number].leader for number in pair]
        links.record(pair, [answers[leader].said if leader in answers else {} for leader in leaders])


def _orders(session: Session, links: Links, pairs: Sequence[Pair]) -> Iterator[tuple[int, Message]]:
    """Leader → what it is to do: the first of a pair calls, the second answers."""
    seconds = session.terms.round_s / SHARE_OF_ROUND
    called = {links.hosts[other].leader: links.hosts[other] for _, other in pairs}
    stores = {}
    if FABRIC in links.games:
        asked: dict[int, Message] = {rank: {"do": "store", "address": host.address} for rank, host in called.items()}
        stores = session.board.ask(asked, seconds)
    for one, other in pairs:
        caller, host = links.hosts[one], links.hosts[other]
        shared: Message = {"secret": secrets.token_hex(16), "seconds": seconds}
        port = stores[host.leader].said.get("port") if host.leader in stores else None
        if port is not None:
            shared |= {"store": {"address": host.address, "port": port}}
        yield host.leader, {"do": "answer", "host": caller.name, **shared}
        yield caller.leader, {"do": "call", "host": host.name, "address": host.address, "port": host.port, **shared}


def _tell(session: Session, links: Links, what: str, games: Tournament) -> None:
    verdict = games.verdict()
    gone = set(session.report.excluded)  # named before; nothing is said of them twice
    names = [host.name for host in links.hosts]
    for name in (names[number] for number in verdict.hosts if names[number] not in gone):
        own = [speed for pair, speed in games.best.items() if names.index(name) in pair]
        met = things(len(own), "other host")
        told = f"{name}: {_speed(max(own))} at best with {met}; {_speed(verdict.reference)} elsewhere"
        session.leave_out(name, what, told, "see its cable, port and interface (ethtool, ibstat), and what uses them")
    for pair in verdict.links:
        one, other = (names[number] for number in pair)
        told = f"{one} – {other}: {_speed(games.best[pair])}"
        if {one, other} & gone:
            continue
        if len(games.best) == 1:
            fix = "nothing tells which of the two it is: ask for a third host, and the check can"
            session.report.add(what, "wrong", told, fix=fix)
        else:
            told = f"{told}; {_speed(verdict.reference)} elsewhere, with both of them"
            session.leave_out(other, what, told, "see what lies between the two; leaving one of them out is enough")
    if not verdict.hosts and not verdict.links:
        span = f"{_speed(min(games.best.values()))} to {_speed(max(games.best.values()))}"
        told = f"{span}, {things(len(games.best), 'pair')}"
        if what == TCP and links.round_trips_s:
            trips = sorted(1e3 * trip for trip in links.round_trips_s)
            told += f", TCP, round trips {trips[0]:.2g} to {trips[-1]:.2g} ms"
        session.report.add(f"{what}s" if what == TCP else what, "ok", told)


def _speed(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s" if bytes_per_s else "nothing came through"
