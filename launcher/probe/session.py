"""What every part of a check shares: the wires, who is still in it, and what was found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from launcher.probe.pairs import LEAST_BYTES_PER_S
from launcher.probe.report import Report, Round
from launcher.probe.switchboard import Answer, Switchboard
from launcher.probe.wire import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is asked of the ranks, and how long they may take."""

    world_size: int
    expected: Sequence[str] = ()
    """The host of every rank, where the launcher tells; names those that never come."""
    roll_call_s: float = 120.0
    """Until all ranks are there: their processes start at different times."""
    round_s: float = 60.0
    """For everything else; a round that imports torch first gets twice as long."""
    tolerance: float | None = None
    """Share of the others' speed that is still good; without it 0.8 between accelerators, 0.5 elsewhere."""

    least_bytes_per_s: float = LEAST_BYTES_PER_S
    """Between two hosts, whatever the others do."""

    def good_share(self, device: str) -> float:
        """For devices of this name."""
        return self.tolerance or (0.5 if device in ("", "cpu") else 0.8)


@dataclass(slots=True, eq=False)
class Host:
    """One machine."""

    name: str
    ranks: list[int]
    address: str
    port: int

    @property
    def leader(self) -> int:
        """The lowest rank, which speaks for it."""
        return self.ranks[0]


@dataclass(slots=True)
class Session:
    """One check in progress.

    Args:
        board: The wires to all ranks.
        terms: What is asked.
    """

    board: Switchboard
    terms: Terms
    hosts: list[Host] = field(default_factory=list)
    """Those that are still in it, in the order of their leaders."""
    has_fabric: bool = False
    """Whether there are accelerators, which have links of their own."""
    report: Report = field(init=False)
    _all: dict[int, Host] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.report = Report(num_ranks=self.terms.world_size)

    def admit(self, host: Host) -> None:
        """Take in a host."""
        self.hosts.append(host)
        self.report.slots[host.name] = len(host.ranks)
        self._all |= dict.fromkeys(host.ranks, host)

    def leave_out(self, name: str, what: str, found: str, fix: str = "") -> None:
        """Name a host that is unfit, and go on without it."""
        self.report.add(what, "unfit", found, fix=fix, hosts=[name])
        self.hosts = [host for host in self.hosts if host.name != name]

    def ranks(self) -> list[int]:
        """Of all hosts that are still in it."""
        return [rank for host in self.hosts for rank in host.ranks]

    def host_of(self, rank: int) -> Host:
        """Where a rank is, still in it or not."""
        return self._all[rank]

    def where(self, rank: int) -> str:
        """A rank as people look for it."""
        return f"{self.host_of(rank).name} rank {rank}"

    def ask_leaders(self, order: Message) -> dict[str, Answer]:
        """Ask one rank of each host; returns host → answer. It is part of the round before."""
        answers = self.board.ask({host.leader: order for host in self.hosts}, self.terms.round_s)
        self.tell_lost()
        return {host.name: answers[host.leader] for host in self.hosts if host.leader in answers}

    def ask_ranks(self, name: str, orders: Mapping[int, Message], patience_s: float) -> dict[int, Message]:
        """One round: what each rank answered without an error."""
        with self.round(name, len(orders)) as answered:
            answers = self.board.ask(orders, patience_s)
            answered.append(len(answers))
        failed = {rank: str(answer.said["error"]) for rank, answer in answers.items() if "error" in answer.said}
        # Where a rank was lost, the errors of those that waited for it are its, not theirs.
        if not self.tell_lost() and failed:
            self._blame(name, failed, orders)
        return {rank: answer.said for rank, answer in answers.items() if rank not in failed}

    def tell_lost(self) -> bool:
        """Leave out the hosts of ranks that stopped answering; returns whether there are new ones.

        Where most hosts stop in one round, they wait for something that none of them can help, and nobody is accused.
        """
        lost = [(host, rank) for host in self.hosts for rank in host.ranks if rank in self.board.lost]
        during = self.report.rounds[-1].name if self.report.rounds else "roll call"
        stopped = {host.name for host, _ in lost}
        if len(stopped) > 1 and 2 * len(stopped) > len(self.hosts):
            found = f"{len(stopped)} of {len(self.hosts)} hosts stopped answering ({during})"
            self.report.add("ranks", "unfit", found, fix="see the network and the back end they have in common")
            self.hosts = [host for host in self.hosts if host.name not in stopped]
            return True
        for host in dict.fromkeys(host for host, _ in lost):
            rank = next(rank for other, rank in lost if other is host)
            found = f"{host.name}: rank {rank}: {self.board.lost[rank]} ({during})"
            fix = "see that host: its processes hang, died, or are cut off"
            self.leave_out(host.name, "ranks", found, fix)
        return bool(lost)

    @contextmanager
    def round(self, name: str, asked: int) -> Iterator[list[int]]:
        """Note a round; numbers put into the list are ranks that answered."""
        began = time.monotonic()
        answered: list[int] = []
        yield answered
        elapsed_s = time.monotonic() - began
        self.report.rounds.append(Round(name=name, elapsed_s=elapsed_s, asked=asked, answered=sum(answered)))

    def _blame(self, name: str, failed: Mapping[int, str], asked: Mapping[int, Message]) -> None:
        """An error on half of the hosts or more is not theirs but of what they have in common."""
        by_host: dict[str, str] = {}
        for rank, error in sorted(failed.items()):
            by_host.setdefault(self.host_of(rank).name, f"rank {rank}: {error}")
        num_asked = len({self.host_of(rank).name for rank in asked})
        if 2 * len(by_host) >= num_asked:
            host, error = next(iter(by_host.items()))
            found = f"on {len(by_host)} of {num_asked} hosts, e.g. {host}, {error}"
            self.report.add(name, "wrong", found, fix="see pretrain doctor, and which interface the back end takes")
            return
        for host, error in by_host.items():
            self.leave_out(host, name, f"{host}: {error}", "see that host: the others can do it")


def spans_of(ranks: Sequence[int]) -> str:
    """Ranks as people read them: 0-3, 7."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans)
