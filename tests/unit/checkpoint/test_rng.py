"""The streams of random numbers that ranks begin with."""

from __future__ import annotations

import random

import numpy as np
import torch

from launcher.checkpoint.rng import seed_generators


def draws(seed: int, rank: int, step: int) -> tuple[float, float, float]:
    seed_generators(seed, rank, step)
    return float(torch.rand(())), random.random(), float(np.random.rand())


def test_no_two_ranks_or_steps_share_a_stream_and_the_same_ones_always_do() -> None:
    places = [(seed, rank, step) for seed in (1, 2) for rank in range(4) for step in (0, 1, 2, 500)]
    first = [draws(*place) for place in places]
    for column in zip(*first, strict=True):
        assert len(set(column)) == len(places)
    assert [draws(*place) for place in places] == first
