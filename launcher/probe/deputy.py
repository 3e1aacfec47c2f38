"""When rank 0 itself cannot be reached: the first rank of the second host asks the others whether they can.

Most hosts must agree before the first one is named, since a host that was cut off reaches nobody either.
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.probe.report import Report
from launcher.probe.sameness import stranger
from launcher.probe.session import Terms
from launcher.probe.switchboard import Switchboard

NOBODY_SAYS = "too few hosts reach each other to say who is cut off"


def deputy_of(expected: Sequence[str]) -> int | None:
    """The first rank that is not on rank 0's host; None where there is none, or nobody knows the hosts."""
    return next((rank for rank, host in enumerate(expected) if host != expected[0]), None)


def ask_without_rank_0(board: Switchboard, terms: Terms, own_host: str) -> Report:
    """Count the hosts that reach this one and did not reach the first.

    Args:
        board: The deputy's wires.
        terms: As rank 0 would have asked; `expected` is known.
        own_host: The deputy's.
    """
    report = Report(num_ranks=terms.world_size)
    first = terms.expected[0]
    others = sum(host != first for host in terms.expected)
    board.roll_call(lambda hello: stranger(hello, terms.world_size), others - 1, terms.roll_call_s)
    heard = {own_host, *(str(hello["host"]) for hello in board.hellos.values())}
    report.slots = {host: terms.expected.count(host) for host in dict.fromkeys(terms.expected) if host in heard}
    num_hosts = len(set(terms.expected))
    told = f"{len(heard)} of {num_hosts} hosts reach {own_host}, and none of them reaches rank 0 on {first}"
    if 2 * len(heard) > num_hosts:
        fix = "see that host: it is down or cut off, or its rank 0 did not start"
        report.add("ranks", "unfit", f"{first}: {told}", fix=fix, hosts=[first])
    else:
        report.add("ranks", "unfit", f"{told}: {NOBODY_SAYS}", fix="see the network between all of them")
    return report
