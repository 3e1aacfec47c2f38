from __future__ import annotations

import numpy as np
import pytest

from launcher import units


@pytest.mark.parametrize(
    ("value", "text"),
    [(12, "12"), (3512, "3.51K"), (2.7e6, "2.70M"), (124e6, "124M"), (8.03e9, "8.03B"), (1.5e13, "15.00T")],
)
def test_counts_read_in_three_digits(value: float, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(10, "10 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB")])
def test_sizes_are_binary(value: float, text: str) -> None:
    assert units.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(42, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations_name_two_units(value: float, text: str) -> None:
    assert units.duration(value) == text


def test_mixing_is_splitmix64() -> None:
    # First outputs of splitmix64 seeded with 0 and 1 (reference implementation by Sebastiano Vigna).
    assert [hex(x) for x in units.mix(np.array([0, 1], dtype=np.uint64))] == [
        "0xe220a8397b1dcdaf",
        "0x910a2dec89025cc1",
    ]


def test_derived_keys_differ_by_every_label() -> None:
    keys = {units.derive(seed, a, b) for seed in range(5) for a in range(5) for b in range(5)}
    assert len(keys) == 125
    assert units.derive(3, 1, 2) == units.derive(3, 1, 2) != units.derive(3, 2, 1)
