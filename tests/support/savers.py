"""Savers of one rank without an engine: what they write is a few tensors of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from launcher.checkpoint import save
from launcher.checkpoint.part import Part
from launcher.checkpoint.ranks import Ranks
from launcher.checkpoint.tensor_file import Layout
from launcher.config.recipe import CheckpointConfig


class Alone(Ranks):
    """One rank."""

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 1

    def exchange(self, value: Any) -> list[Any]:
        return [json.loads(json.dumps(value))]


def saver_of(
    kind: type[save.Saver],
    tensors: Sequence[torch.Tensor],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    retry_s: float = 0.0,
    before_writing: Callable[[], None] = lambda: None,
) -> save.Saver:
    """A saver whose checkpoints hold `0`, `1`, … and whose `save` is told the step alone.

    Args:
        kind: Which one.
        tensors: The state; what they hold when a save begins is what is to be saved.
        folder: The run's `checkpoints/`.
        monkeypatch: Of the test.
        retry_s: Of its configuration.
        before_writing: Called when everything has been checked and the first byte is about to be written.
    """
    monkeypatch.setattr(save, "Ranks", Alone)
    idle = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    saver = kind(SimpleNamespace(basic_optimizer=idle, optimizer=idle), folder, CheckpointConfig(retry_s=retry_s))
    described = [(str(number), tensor.dtype, tuple(tensor.shape)) for number, tensor in enumerate(tensors)]
    part = Mock(spec=Part, layout=Layout(described), tensors=lambda: iter(tensors))

    def path(saving: Path) -> Path:
        file = saving / "rank-00000.safetensors"
        if not file.exists():
            before_writing()
        return file

    part.path = path
    part.index = lambda file: json.dumps({"format_version": 1, "slices": [], "file": file})

    def job(state: dict[str, int], _: object) -> save._Job:
        text = json.dumps({"format_version": 1, "evaluations": [], **state})
        return save._Job(step=state["step"], texts={"state.json": text}, started=0.0)

    saver._part = part
    monkeypatch.setattr(saver, "_job", job)
    return saver
