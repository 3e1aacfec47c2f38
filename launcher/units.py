"""Numbers as people read them, bytes by what they are for, and random bits as a pure function of integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def count(value: float) -> str:
    """A number of things in three digits: 3512 → `3.51K`, 2.7e6 → `2.70M`."""
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{suffix}" if value / factor >= 100 else f"{value / factor:.2f}{suffix}"
    return f"{value:g}"


def size(num_bytes: float) -> str:
    """A number of bytes in binary units: 1536 → `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(num_bytes) < 1024 or unit == "TiB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """What a rank's tensors take, by what they are for: counted (`engine.held`) or foreseen (`plan.memory`)."""

    parameters: int
    """Weights the model computes with."""
    gradients: int
    """That wait for the step."""
    optimizer: int
    """fp32 weights of mixed precision, of stages 1 to 3 always, and AdamW's two moments."""
    buffers: int
    """All else: the buckets of communication, what a model computes with and does not learn."""

    @property
    def total(self) -> int:
        """Of all four."""
        return self.parameters + self.gradients + self.optimizer + self.buffers


# Made once: of 32 numbers, making the constants anew took as long as mixing.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers so that neighbouring ones become independent-looking bits.

    Args:
        values: uint64, any shape.

    Returns:
        uint64 of the same shape; a bijection of its input.

    Source: the finaliser of splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
    """
    z = values + _GOLDEN
    shifted = z >> _SHIFTS[0]
    z ^= shifted
    z *= _FACTORS[0]
    np.right_shift(z, _SHIFTS[1], out=shifted)
    z ^= shifted
    z *= _FACTORS[1]
    np.right_shift(z, _SHIFTS[2], out=shifted)
    z ^= shifted
    return z


def derive(seed: int, *labels: int) -> int:
    """A 64-bit key that follows from a seed and a path of integers: `derive(seed, EPOCH, 3)`."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)  # numpy warns when a single number wraps
    for label in labels:
        key = mix(key ^ mix(np.array([label & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)))
    return int(key[0])
