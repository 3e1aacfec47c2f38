"""Mixtures: exact shares, and every prefix of the run a prefix of each corpus."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import RecipeError
from launcher.samples.mixture import MIN_BLOCK, Mixture, Phase

WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)
NAMES = tuple("abcde")


def weights_of(numbers: list[int]) -> dict[str, float]:
    return {NAMES[number]: float(weight) for number, weight in enumerate(numbers)}


@settings(max_examples=60, deadline=None)
@given(first=WEIGHTS, second=WEIGHTS, change=st.integers(1, 700), seed=st.integers(0, 99))
def test_every_prefix_of_the_run_is_a_prefix_of_each_corpus(
    first: list[int], second: list[int], change: int, seed: int
) -> None:
    mixture = Mixture(NAMES, (Phase(0, weights_of(first)), Phase(change, weights_of(second))), seed)
    corpora, own = mixture.locate(np.arange(900, dtype=np.int64))
    for number in range(len(NAMES)):
        assert own[corpora == number].tolist() == list(range(np.count_nonzero(corpora == number)))
    for position in (0, 1, change - 1, change, change + 1, 899):
        assert mixture.cursors(position).tolist() == np.bincount(corpora[:position], minlength=len(NAMES)).tolist()
    for position in range(0, 900, 37):
        assert mixture.position_of(int(corpora[position]), int(own[position])) == position


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(1, 1000), min_size=2, max_size=5), num_blocks=st.integers(0, 10**9))
def test_counts_are_exact_to_the_largest_remainder_at_every_block(numbers: list[int], num_blocks: int) -> None:
    mixture = Mixture(NAMES, (Phase(0, weights_of(numbers)),), 1)
    block = MIN_BLOCK
    while block * min(numbers) < sum(numbers):
        block *= 2
    position = num_blocks * block
    counts = mixture.cursors(position)
    quotas = [Fraction(position * number, sum(numbers)) for number in numbers]
    assert int(counts.sum()) == position
    rests = sorted((quota - math.floor(quota) for quota in quotas), reverse=True)
    num_up = position - sum(map(math.floor, quotas))
    for count, quota in zip(counts.tolist(), quotas, strict=False):
        assert count - math.floor(quota) in (0, 1)
        if count > math.floor(quota):
            assert quota - math.floor(quota) >= rests[num_up - 1]


def test_the_corpora_of_a_block_are_scattered() -> None:
    mixture = Mixture(("a", "b"), (Phase(0, {"a": 1.0, "b": 1.0}),), 1)
    corpora, _ = mixture.locate(np.arange(4096, dtype=np.int64))
    assert abs(np.corrcoef(corpora[:-1], corpora[1:])[0, 1]) < 0.1
    other, _ = Mixture(("a", "b"), (Phase(0, {"a": 1.0, "b": 1.0}),), 2).locate(np.arange(4096, dtype=np.int64))
    assert 0.4 < (corpora == other).mean() < 0.6


def test_a_far_position_costs_no_more_than_a_near_one() -> None:
    mixture = Mixture(("a", "b"), (Phase(0, {"a": 0.9, "b": 0.1}),), 1)
    corpora, own = mixture.locate(np.arange(10**15, 10**15 + 64, dtype=np.int64))
    assert abs(own[corpora == 0][0] - 9 * 10**14) <= MIN_BLOCK


def test_a_corpus_that_a_later_phase_leaves_out_never_comes_to_its_next_position() -> None:
    mixture = Mixture(("a", "b"), (Phase(0, {"a": 0.5, "b": 0.5}), Phase(100, {"b": 1.0})), 1)
    consumed = int(mixture.cursors(100)[0])
    assert mixture.position_of(0, consumed) is None
    assert mixture.position_of(0, consumed - 1) is not None


@pytest.mark.parametrize(
    ("phases", "says"),
    [
        ((), "begin at nothing|no position"),
        ((Phase(5, {"a": 1.0}),), "begin at 5"),
        ((Phase(0, {"a": 1.0}), Phase(0, {"b": 1.0})), "begin at 0, 0"),
        ((Phase(0, {}),), "no corpus has a weight"),
        ((Phase(0, {"x": 1.0}),), "there is no corpus 'x'"),
        ((Phase(0, {"a": 0.0}),), "not a positive number"),
        ((Phase(0, {"a": math.nan}),), "not a positive number"),
        ((Phase(0, {"a": 1.0, "b": 1e-12}),), "less than one in"),
    ],
    ids=["no phase", "a late beginning", "two at once", "nothing", "a stranger", "zero", "no number", "a trace"],
)
def test_weights_that_cannot_be_kept_are_refused(phases: tuple[Phase, ...], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as error:
        Mixture(("a", "b"), phases, 1)
    assert error.value.fix
