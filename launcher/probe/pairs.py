"""A tournament of hosts: who is measured with whom, and whether a slow pair is the fault of a host or of a link.

Shapes: hosts are numbers from 0 to H - 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Pair = tuple[int, int]
LEAST_BYTES_PER_S = 12.5e6
"""100 Mbit/s: slower than this no link is fit, whatever the others do (assumption)."""


def num_rounds(num_hosts: int) -> int:
    """Rounds of the tournament: log2(hosts), and one more for three, of which one bad host is in two of three pairs."""
    return math.ceil(math.log2(num_hosts)) + (num_hosts == 3) if num_hosts > 1 else 0


def most_rounds(num_hosts: int) -> int:
    """Rounds of a whole check: 2 log2(hosts) + 4."""
    return int(2 * math.log2(num_hosts)) + 4 if num_hosts > 0 else 0


def first_rounds(num_hosts: int) -> list[list[Pair]]:
    """Rounds in which every host meets another one each time, and none twice (the circle method).

    With an odd number one host rests in each round. After log2(H) rounds each has met as many others.
    """
    places = list(range(num_hosts + num_hosts % 2))  # the one too many is who a host rests with
    half = len(places) // 2
    rounds = []
    for _ in range(num_rounds(num_hosts)):
        pairs = [(places[index], places[-1 - index]) for index in range(half)]
        rounds.append([(min(pair), max(pair)) for pair in pairs if max(pair) < num_hosts])
        places = [places[0], places[-1], *places[1:-1]]
    return rounds


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the measurements say so far."""

    hosts: tuple[int, ...]
    """Slow towards all of those they met, but for other slow hosts."""
    links: tuple[Pair, ...]
    """Slow between two hosts that are well with others, or that have met nobody else."""
    reference: float
    """Bytes a second of a good pair."""


@dataclass(slots=True)
class Tournament:
    """All measurements, and what follows from them.

    Args:
        num_hosts: H.
        tolerance: Share of a good pair's speed that is still good.
        least_bytes_per_s: What is slower is unfit, whatever the others do.
    """

    num_hosts: int
    tolerance: float
    least_bytes_per_s: float = LEAST_BYTES_PER_S
    best: dict[Pair, float] = field(default_factory=dict)
    """Pair → bytes a second of its slower direction, the best of all its measurements: noise only takes away."""
    times: dict[Pair, int] = field(default_factory=dict)
    """Pair → how often it was measured."""

    def record(self, pair: Pair, bytes_per_s: float) -> None:
        """Take in the slower direction of one measurement; 0 where nothing came through."""
        self.best[pair] = max(self.best.get(pair, 0.0), bytes_per_s)
        self.times[pair] = self.times.get(pair, 0) + 1

    def verdict(self) -> Verdict:
        """Name hosts first: one bad host makes every pair of it slow."""
        # The upper quartile, not the median: one bad host of three is in two of three pairs.
        ordered = sorted(self.best.values(), reverse=True)
        reference = ordered[(len(ordered) - 1) // 4] if ordered else 0.0
        least = max(_good_share(ordered, self.tolerance) * reference, self.least_bytes_per_s)
        slow = {pair for pair, speed in self.best.items() if speed < least}
        hosts: list[int] = []
        if len(slow) < len(self.best):  # where nothing is well, nothing tells who is to blame
            num_slow = {host: len(pairs) for host, pairs in _by_host(slow).items()}
            while (host := self._worst(slow, num_slow, hosts)) is not None:
                hosts.append(host)
                slow = {pair for pair in slow if host not in pair}
        return Verdict(tuple(sorted(hosts)), tuple(sorted(slow)), reference)

    def doubtful_round(self) -> list[Pair]:
        """A further round: each suspect meets a host that is well, each suspected link is measured again.

        Empty when nothing is left to find out.
        """
        verdict = self.verdict()
        in_links = {host for pair in verdict.links for host in pair}
        well = [host for host in range(self.num_hosts) if host not in verdict.hosts and host not in in_links]
        free = set(range(self.num_hosts))
        pairs: list[Pair] = []
        for suspect in verdict.hosts:
            partners = sorted((host for host in well if host in free), key=lambda host: self._met(suspect, host))
            if partners and self._num_met(suspect) <= num_rounds(self.num_hosts):
                pairs.append((min(suspect, partners[0]), max(suspect, partners[0])))
                free -= {suspect, partners[0]}
        for pair in verdict.links:
            if self.times[pair] < 2 and free.issuperset(pair):
                pairs.append(pair)
                free -= set(pair)
        return pairs

    def _met(self, one: int, other: int) -> int:
        return self.times.get((min(one, other), max(one, other)), 0)

    def _num_met(self, host: int) -> int:
        return sum(times for pair, times in self.times.items() if host in pair)

    def _worst(self, slow: Iterable[Pair], num_slow: Mapping[int, int], known: Sequence[int]) -> int | None:
        """The host in most slow pairs: two at least, and all of those that no other bad host explains."""
        left = _by_host(slow)
        measured = _by_host(pair for pair in self.best if not set(pair) & set(known))
        for host in sorted(left, key=lambda host: (-len(left[host]), host)):
            if num_slow[host] >= 2 and len(left[host]) == len(measured[host]):
                return host
        return None


def _good_share(ordered: Sequence[float], tolerance: float) -> float:
    """Share of the reference that is still good, less where even the best third of the pairs differ by much.

    Between hosts that are busy otherwise, streams differ by a factor of two and more (measured: eight hosts on two
    cores). Of normal noise of the logarithms, the best tenth and the best third lie 0.85 standard deviations apart;
    what is 4.7 times as far below the upper quartile is four of them below it.
    """
    if not ordered or ordered[0] <= 0.0:
        return tolerance
    tenth, third = ordered[len(ordered) // 10], ordered[-(-len(ordered) // 3) - 1]
    return min(tolerance, float((third / tenth) ** 4.7))


def _by_host(pairs: Iterable[Pair]) -> Mapping[int, list[Pair]]:
    found: dict[int, list[Pair]] = {}
    for pair in pairs:
        for host in pair:
            found.setdefault(host, []).append(pair)
    return found
