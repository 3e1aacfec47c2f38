"""Which corpus stands at which position of a run, when several are mixed.

Shapes: N positions, S corpora of the mixture, M corpora of a phase, T positions of a block.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from launcher import units
from launcher.errors import RecipeError, did_you_mean
from launcher.samples.grouping import bounds, grouped
from launcher.samples.recent import Recent

ALGORITHM = "largest-remainder/1"
"""Part of the fingerprint: change it whenever the same weights would give another mixture."""

MIN_BLOCK = 256
MAX_BLOCK = 1 << 20
"""A corpus must get one place in every block, and a block must fit in memory: no share is below one in a million."""

_NUM_KEPT_BLOCKS = 8
_BLOCK_LABEL = 0x6D6978  # "mix"


@dataclass(frozen=True)
class Phase:
    """The weights from one position on."""

    first: int
    """First position it holds for."""
    weights: Mapping[str, float]
    """Share of the samples each corpus gets, in any unit; a corpus that is not named gets none."""


class Mixture:
    """Cuts the positions of a run among corpora, each of which counts its own positions from 0.

    A phase is cut into blocks. Of the first `b` blocks each corpus has its exact share, rounded by the largest
    remainder; inside a block a keyed permutation scatters them, and a corpus's own positions follow in the order of
    the run. So every beginning of the run consumes a beginning of each corpus, and a phase may end anywhere: the next
    one goes on in each corpus where it was left, and nothing is repeated or skipped.

    Args:
        names: The corpora, as `locate` numbers them.
        phases: The first begins at 0, each later one behind the one before.
        seed: Scatters the corpora inside the blocks.

    Raises:
        RecipeError: There is no phase, they are out of order, or a weight is not one.
    """

    def __init__(self, names: tuple[str, ...], phases: tuple[Phase, ...], seed: int) -> None:
        _check(names, phases)
        self.names = names
        self.phases = phases
        self.seed = seed
        self._firsts = [phase.first for phase in phases]
        self._shares = [_Shares(names, phase.weights) for phase in phases]
        self._blocks: Recent[tuple[int, int], _Block] = Recent(_NUM_KEPT_BLOCKS)

    @classmethod
    def alone(cls, name: str) -> Mixture:
        """A mixture of one corpus: every position is its own."""
        return cls((name,), (Phase(0, {name: 1.0}),), 0)

    def locate(self, positions_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The corpus at each position, and the position inside the corpus.

        Args:
            positions_N: int64 [N], from 0 on.

        Returns:
            Indices into `names`, and positions of that corpus, both int64 [N].

        Raises:
            IndexError: A position is negative.
        """
        if not positions_N.size:
            return positions_N.copy(), positions_N.copy()
        lowest, highest = bounds(positions_N)
        if lowest < 0:
            raise IndexError("a position is negative")
        if len(self.names) == 1:
            return np.zeros(positions_N.shape, dtype=np.int64), positions_N
        number = bisect_right(self._firsts, lowest) - 1
        if bisect_right(self._firsts, highest) - 1 == number:  # a batch of a run, nearly always
            return self._locate_in(number, positions_N - self._firsts[number])
        corpora_N, own_N = np.empty_like(positions_N), np.empty_like(positions_N)
        phases_N = np.searchsorted(self._firsts, positions_N, side="right") - 1
        for number, here in grouped(phases_N):
            corpora_N[here], own_N[here] = self._locate_in(number, positions_N[here] - self._firsts[number])
        return corpora_N, own_N

    def cursors(self, position: int) -> NDArray[np.int64]:
        """How many samples of each corpus the positions below this one hold, int64 [S].

        Raises:
            IndexError: The position is negative.
        """
        if position < 0:
            raise IndexError("a position is negative")
        number = bisect_right(self._firsts, position) - 1
        return self._starts[number] + self._consumed_in(number, position - self._firsts[number])

    def position_of(self, corpus: int, own_position: int) -> int | None:
        """The position of the run at which a corpus's own position stands; None if the run never comes to it.

        Args:
            corpus: Index into `names`.
            own_position: From 0 on.
        """
        started = [int(start_S[corpus]) for start_S in self._starts]
        number = bisect_right(started, own_position) - 1
        shares = self._shares[number]
        if corpus not in shares.members:
            return None  # the last phase leaves the corpus out: a phase with a later start would have been found
        left = own_position - started[number]
        if len(shares.members) == 1:
            return self._firsts[number] + left
        member = shares.members.index(corpus)
        block_number = left * shares.total // (shares.block * shares.parts[member])
        while shares.apportioned(block_number)[member] > left:
            block_number -= 1
        while shares.apportioned(block_number + 1)[member] <= left:
            block_number += 1
        block = self._blocks.get((number, block_number), self._scattered)
        nth = left - shares.apportioned(block_number)[member]
        place = int(np.flatnonzero(block.members_T == member)[nth])
        return self._firsts[number] + block_number * shares.block + place

    def describe(self, number: int) -> tuple[tuple[int, Fraction], ...]:
        """The corpora of a phase in the order that decides ties, with their shares."""
        shares = self._shares[number]
        return tuple(
            (member, Fraction(part, shares.total)) for member, part in zip(shares.members, shares.parts, strict=True)
        )

    @cached_property
    def _starts(self) -> list[NDArray[np.int64]]:
        """What each phase finds consumed of each corpus."""
        starts = [np.zeros(len(self.names), dtype=np.int64)]
        for number, (first, end) in enumerate(pairwise(self._firsts)):
            starts.append(starts[-1] + self._consumed_in(number, end - first))
        return starts

    def _consumed_in(self, number: int, num_positions: int) -> NDArray[np.int64]:
        """Of each corpus, in the first positions of a phase."""
        shares = self._shares[number]
        consumed_S = np.zeros(len(self.names), dtype=np.int64)
        if len(shares.members) == 1:
            consumed_S[shares.members[0]] = num_positions
            return consumed_S
        block_number, rest = divmod(num_positions, shares.block)
        counts = np.array(shares.apportioned(block_number), dtype=np.int64)
        if rest:
            block = self._blocks.get((number, block_number), self._scattered)
            counts += np.bincount(block.members_T[:rest], minlength=len(counts))
        consumed_S[list(shares.members)] = counts
        return consumed_S

    def _locate_in(self, number: int, offsets_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shares, start_S = self._shares[number], self._starts[number]
        if len(shares.members) == 1:
            corpus = shares.members[0]
            return np.full(offsets_N.shape, corpus), offsets_N + start_S[corpus]
        corpora_N, own_N = np.empty_like(offsets_N), np.empty_like(offsets_N)
        blocks_N, places_N = np.divmod(offsets_N, shares.block)
        for block_number, here in grouped(blocks_N):
            block = self._blocks.get((number, block_number), self._scattered)
            places = places_N[here]
            corpora_N[here] = shares.members_M[block.members_T[places]]
            own_N[here] = block.own_T[places]
        return corpora_N, own_N + start_S[corpora_N]

    def _scattered(self, key: tuple[int, int]) -> _Block:
        """Which corpus of the phase has each place of a block, and the how-manieth of the phase it is there."""
        number, block_number = key
        shares = self._shares[number]
        before = np.array(shares.apportioned(block_number), dtype=np.int64)
        counts = np.array(shares.apportioned(block_number + 1), dtype=np.int64) - before
        block_key = np.uint64(units.derive(self.seed, _BLOCK_LABEL, number, block_number))
        # Sorting by a keyed bijection of the index is a permutation without ties, and cheaper here than a network.
        scattered_T = np.argsort(units.mix(np.arange(shares.block, dtype=np.uint64) ^ block_key))
        members_T = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[scattered_T]
        by_member_T = np.argsort(members_T, kind="stable")
        own_T = np.empty(shares.block, dtype=np.int64)
        own_T[by_member_T] = np.arange(shares.block) + np.repeat(before - (np.cumsum(counts) - counts), counts)
        return _Block(members_T, own_T)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of positions of a phase."""

    members_T: NDArray[np.int32]
    """Corpus of each place, as a number inside the phase."""
    own_T: NDArray[np.int64]
    """Its position inside the corpus, counted from the beginning of the phase."""


class _Shares:
    """The weights of a phase as integers: member `m` gets `parts[m]` of `total`, exactly."""

    def __init__(self, names: tuple[str, ...], weights: Mapping[str, float]) -> None:
        # By name, so that ties do not depend on where a corpus stands in the recipe.
        ordered = sorted(weights)
        fractions = [_written(weights[name]) for name in ordered]
        denominator = math.lcm(*(fraction.denominator for fraction in fractions))
        parts = [int(fraction * denominator) for fraction in fractions]
        common = math.gcd(*parts)
        self.members = tuple(names.index(name) for name in ordered)
        self.members_M = np.array(self.members, dtype=np.int64)
        self.parts = tuple(part // common for part in parts)
        self.total = sum(self.parts)
        self.block = MIN_BLOCK
        while self.block * min(self.parts) < self.total:
            self.block *= 2

    def apportioned(self, num_blocks: int) -> list[int]:
        """Places of each member in the first blocks, by the largest remainder; ties go to the first.

        A member's quota grows by one or more a block and is rounded up or down, so what it has never shrinks.
        """
        places = num_blocks * self.block
        floors_and_rests = [divmod(places * part, self.total) for part in self.parts]
        counts = [floor for floor, _ in floors_and_rests]
        by_rest = sorted(range(len(counts)), key=lambda member: -floors_and_rests[member][1])
        for member in by_rest[: places - sum(counts)]:
            counts[member] += 1
        return counts


def _written(weight: float) -> Fraction:
    """The decimal number that was written: 0.7, not the double nearest to it."""
    return Fraction(repr(float(weight)))


def _check(names: tuple[str, ...], phases: tuple[Phase, ...]) -> None:
    """Raises RecipeError; see `Mixture`."""
    firsts = [phase.first for phase in phases]
    if not firsts or firsts[0] != 0 or any(later <= first for first, later in pairwise(firsts)):
        raise RecipeError(
            f"the phases of the mixture begin at {', '.join(map(str, firsts)) or 'no position'}",
            "data.mixture",
            "let the first begin at 0 and each later one behind the one before",
        )
    for phase in phases:
        where = f"data.mixture, the phase from position {phase.first}"
        if not phase.weights:
            raise RecipeError("no corpus has a weight", where, f"name one of: {', '.join(names)}")
        for name, weight in phase.weights.items():
            if name not in names:
                raise RecipeError(f"there is no corpus {name!r}", where, did_you_mean(name, names))
            if not (math.isfinite(weight) and weight > 0):
                raise RecipeError(
                    f"the weight {weight} of {name!r} is not a positive number",
                    where,
                    "leave out a corpus that is to get nothing",
                )
        smallest = min(phase.weights, key=lambda name: phase.weights[name])
        share = _written(phase.weights[smallest]) / sum(map(_written, phase.weights.values()))
        if share * MAX_BLOCK < 1:
            raise RecipeError(
                f"{smallest!r} would get {float(share):.1e} of the samples, less than one in {MAX_BLOCK}",
                where,
                "leave it out, or give it more",
            )
