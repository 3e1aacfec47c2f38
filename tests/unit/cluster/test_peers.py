"""Ranks learn within seconds that another is gone, and who it was."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from launcher.cluster import peers
from launcher.cluster.peers import Lost, Peers
from launcher.errors import ClusterError


@pytest.fixture
def three() -> Iterator[list[Peers]]:
    ranks = [Peers(rank, 3) for rank in range(3)]
    known = ranks[0].listen("127.0.0.1")
    for rank in ranks[1:]:
        rank.connect(known)
    settle(ranks)
    yield ranks
    for rank in ranks:
        rank.close()


def settle(ranks: list[Peers]) -> list[Lost | None]:
    """Let everything that was sent arrive."""
    found: list[Lost | None] = []
    for _ in range(5):
        found = [rank.poll(0.01) for rank in ranks]
    return found


def test_while_all_live_nobody_is_lost(three: list[Peers]) -> None:
    assert settle(three) == [None, None, None]


def test_a_death_is_told_to_all_with_its_name(three: list[Peers]) -> None:
    three[2].close()
    found = settle(three[:2])
    assert [(lost.rank, lost.code, lost.why) for lost in found if lost] == [(2, 75, "has died")] * 2
    assert str(found[1]).startswith(f"rank 2 on {socket.gethostname()} (pid ")


def test_the_death_of_rank_0_is_seen_by_the_others(three: list[Peers]) -> None:
    three[0].close()
    assert [(lost.rank, lost.why) for lost in settle(three[1:]) if lost] == [(0, "has died")] * 2


def test_a_rank_that_fails_gives_the_others_its_exit_code(three: list[Peers]) -> None:
    three[1].tell({"failed": 2})
    three[1].close()
    found = settle([three[0], three[2]])
    assert [(lost.rank, lost.code, lost.has_told) for lost in found if lost] == [(1, 2, True)] * 2


def test_rank_0_that_fails_does_so_too(three: list[Peers]) -> None:
    three[0].tell({"failed": 1})
    three[0].close()
    assert [(lost.rank, lost.code) for lost in settle(three[1:]) if lost] == [(0, 1)] * 2


def test_after_a_farewell_an_end_is_no_loss(three: list[Peers]) -> None:
    for rank in three:
        rank.farewell()
    settle(three)
    three[0].close()
    assert settle(three[1:]) == [None, None]


def test_a_rank_that_stands_still_is_silent(three: list[Peers], monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    clock = iter(range(10**6))
    monkeypatch.setattr(peers.time, "monotonic", lambda: now + next(clock))  # a second a look
    found: list[Lost | None] = [None]
    for _ in range(200):
        found = [rank.poll(0) for rank in three[:2]]  # rank 2 says nothing
        if found[0]:
            break
    lost = settle(three[:2])[1]
    assert lost is not None
    assert lost.rank == 2
    assert "has been silent for" in lost.why


def test_whoever_stood_still_itself_takes_nobody_for_silent(
    three: list[Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(peers.time, "monotonic", lambda: now + 10 * peers.SILENCE_S)
    assert three[0].poll(0) is None  # a suspended job goes on: what the others said meanwhile comes later


def test_in_a_hang_the_rank_that_stands_still_is_named(three: list[Peers], monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    clock = iter(range(10**6))
    monkeypatch.setattr(peers.time, "monotonic", lambda: now + next(clock) / 10)
    for _ in range(30):  # rank 2 says nothing for some seconds
        for rank in three[:2]:
            rank.poll(0)
    three[1].tell({"hangs": "has not got on with a step"})
    found = settle(three[:2])
    assert [(lost.rank, lost.why.startswith("has been silent for")) for lost in found if lost] == [(2, True)] * 2


def test_a_hang_of_ranks_that_all_live_is_told_by_the_first_to_notice(three: list[Peers]) -> None:
    three[2].tell({"hangs": "has not got on with a step for 130 s"})
    found = settle(three)
    assert [(lost.rank, lost.why) for lost in found if lost] == [(2, "has not got on with a step for 130 s")] * 3


def test_a_stranger_is_not_listened_to(three: list[Peers]) -> None:
    with socket.create_connection(("127.0.0.1", three[0]._listener.getsockname()[1])) as stranger:  # type: ignore[union-attr]
        stranger.sendall(b'{"hello": 1, "secret": "guessed", "host": "x", "pid": 1, "space": "", "started": ""}\n')
        stranger.sendall(b'{"failed": 1}\nnot json\n[]\n')
        assert settle(three) == [None, None, None]
    assert settle(three) == [None, None, None]


def test_rank_0_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        known = {**Peers(0, 2).listen("127.0.0.1"), "port": nobody.getsockname()[1]}
        with pytest.raises(ClusterError, match="rank 1 cannot reach rank 0") as told:
            Peers(1, 2).connect(known)
    assert "open the ports" in told.value.fix
