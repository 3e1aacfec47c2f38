"""The random states of one rank, as tensors, and the streams they begin with."""

from __future__ import annotations

import random

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

from launcher.units import derive

PREFIX = "rng|"
DROPOUT_STREAM = 2
"""`launcher.models.initial` draws weights from stream 1 of the same seed."""


def seed_generators(seed: int, rank: int, step: int = 0) -> None:
    """Give a rank streams of its own for dropout, and whatever else a model draws.

    A run that goes on with another number of ranks cannot go on with their old streams: it takes those of the step that
    it goes on from, which no rank has drawn from before. At step 0 they are those of a run that begins.

    Args:
        seed: Of the run.
        rank: Of this process.
        step: The last step that was taken.
    """
    key = derive(seed, DROPOUT_STREAM, rank, *([step] if step else [])) >> 1
    torch.manual_seed(key)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)


def random_states() -> dict[str, torch.Tensor]:
    """Everything that draws random numbers in this process: torch on the CPU and on the device, python, numpy."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    if version != 3 or name != "MT19937":  # both have been so since Python 3.2 and numpy 1.0
        raise RuntimeError(f"unknown generators: python {version}, numpy {name}")
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if get_accelerator().device_name() != "cpu":
        states["device"] = get_accelerator().get_rng_state().cpu()
    return {PREFIX + key: value for key, value in states.items()}


def restore_random_states(states: dict[str, torch.Tensor]) -> None:
    """Put back what `random_states` returned, the names without their prefix."""
    torch.set_rng_state(states["torch"])
    gauss = float(states["python_gauss"])
    random.setstate((3, tuple(states["python"].tolist()), None if gauss != gauss else gauss))
    position, has_gauss = states["numpy_position"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(states["numpy_gauss"])))
    if "device" in states and get_accelerator().device_name() != "cpu":
        get_accelerator().set_rng_state(states["device"])
