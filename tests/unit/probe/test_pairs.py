"""A tournament of few rounds tells a slow host from a slow link."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.probe.pairs import LEAST_BYTES_PER_S, Pair, Tournament, first_rounds, most_rounds, num_rounds

GOOD = 1e9
FIXED_ROUNDS = 4
"""Roll call, compute, all-reduce within hosts, across hosts."""


def play(num_hosts: int, bad_hosts: set[int], bad_links: set[Pair], good: float = GOOD) -> tuple[Tournament, int]:
    """A tournament with its further rounds; how many rounds there were."""

    def speed(pair: Pair) -> float:
        return good / 10 if bad_hosts & set(pair) or pair in bad_links else good

    games = Tournament(num_hosts, 0.5)
    rounds = FIXED_ROUNDS
    for pairs in first_rounds(num_hosts):
        rounds += 1
        for pair in pairs:
            games.record(pair, speed(pair))
    while rounds < most_rounds(num_hosts) and (pairs := games.doubtful_round()):
        rounds += 1
        for pair in pairs:
            games.record(pair, speed(pair))
    return games, rounds


@given(st.integers(2, 200))
def test_nobody_meets_anybody_twice_nor_two_at_once(num_hosts: int) -> None:
    rounds = first_rounds(num_hosts)
    assert len(rounds) == num_rounds(num_hosts)
    pairs = [pair for pairs in rounds for pair in pairs]
    assert len(set(pairs)) == len(pairs)
    for one in rounds:
        hosts = [host for pair in one for host in pair]
        assert len(set(hosts)) == len(hosts) >= num_hosts - 1
        assert all(0 <= low < high < num_hosts for low, high in one)


@given(st.integers(2, 5000))
def test_the_rounds_leave_room_for_doubts(num_hosts: int) -> None:
    assert FIXED_ROUNDS + num_rounds(num_hosts) <= most_rounds(num_hosts)


@pytest.mark.parametrize("num_hosts", [3, 4, 5, 6, 7, 8, 13, 64])
def test_every_single_bad_host_is_named_and_nobody_else(num_hosts: int) -> None:
    for bad in range(num_hosts):
        games, rounds = play(num_hosts, {bad}, set())
        assert (games.verdict().hosts, games.verdict().links) == ((bad,), ())
        assert rounds <= most_rounds(num_hosts)


@pytest.mark.parametrize("num_hosts", [4, 5, 8, 64])
def test_every_measured_bad_link_is_named_as_a_link(num_hosts: int) -> None:
    for link in itertools.chain(*first_rounds(num_hosts)):
        games, rounds = play(num_hosts, set(), {link})
        assert (games.verdict().hosts, games.verdict().links) == ((), (link,))
        assert rounds <= most_rounds(num_hosts)


@given(st.data())
def test_several_bad_hosts_among_many_are_named(data: st.DataObject) -> None:
    num_hosts = data.draw(st.integers(16, 100))
    bad = set(data.draw(st.lists(st.integers(0, num_hosts - 1), max_size=num_hosts // 16)))
    games, rounds = play(num_hosts, bad, set())
    assert set(games.verdict().hosts) == bad
    assert games.verdict().links == ()
    assert rounds <= most_rounds(num_hosts)


def test_of_two_hosts_only_the_link_can_be_named() -> None:
    games, rounds = play(2, set(), set(), good=LEAST_BYTES_PER_S / 2)
    assert (games.verdict().hosts, games.verdict().links) == ((), ((0, 1),))
    assert rounds == most_rounds(2)  # measured once more before it is named


def test_where_nothing_is_well_nobody_is_blamed() -> None:
    games, _ = play(4, set(), set(), good=LEAST_BYTES_PER_S / 2)
    assert games.verdict().hosts == ()
    assert len(games.verdict().links) == len(games.best)


@pytest.mark.parametrize("num_hosts", [4, 8, 64])
def test_streams_that_all_differ_hide_no_slow_host_and_blame_nobody_else(num_hosts: int) -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed)
        games = Tournament(num_hosts, 0.5)
        for pair in itertools.chain(*first_rounds(num_hosts)):
            games.record(pair, GOOD * float(np.exp(noise.normal(0.0, 0.15))) * (0.01 if 1 in pair else 1.0))
        assert games.verdict().hosts == (1,)


def test_noise_that_goes_away_is_forgotten() -> None:
    games = Tournament(4, 0.5)
    for pair in ((0, 3), (0, 2), (1, 3)):
        games.record(pair, GOOD)
    games.record((1, 2), GOOD / 100)
    assert games.doubtful_round() == [(1, 2)]
    games.record((1, 2), GOOD)
    assert games.verdict().links == ()
