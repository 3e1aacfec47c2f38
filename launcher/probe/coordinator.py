"""The check as rank 0 leads it: who is there → what they are made of → how fast each is → who reaches whom."""

from __future__ import annotations

from pathlib import Path

from launcher.probe import links, sameness, speed
from launcher.probe.report import Report
from launcher.probe.session import Session, Terms
from launcher.probe.switchboard import Switchboard


def lead(board: Switchboard, terms: Terms, mark: Path | None) -> Report:
    """Every round, each on the hosts that the one before has left.

    Args:
        board: The wires to all ranks.
        terms: What is asked of them.
        mark: A file in the run's folder that every host must see; None where nothing could be written there.
    """
    session = Session(board, terms)
    sameness.call_the_roll(session)
    if session.hosts:
        sameness.compare(session)
        sameness.look_for_room(session)
        sameness.read_clocks(session)
        if mark is not None:
            sameness.look_for_mark(session, mark)
        speed.compute(session)
        speed.reduce_within(session)
        links.play_pairs(session)
        speed.reduce_across(session)
    return session.report
