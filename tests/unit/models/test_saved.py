"""Weights converted a layer at a time are those that save_pretrained writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, NUMBERS
from safetensors.torch import load_file
from transformers import AutoConfig

from launcher.config.objectives import Head
from launcher.models.build import AUTO_CLASSES
from launcher.models.saved import convert, saved_units


@pytest.mark.parametrize(("head", "family", "fields"), FAMILIES, ids=[family for _, family, _ in FAMILIES])
def test_the_pieces_are_what_save_pretrained_writes(
    head: Head, family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.for_model(family, **{**NUMBERS, **fields})
    model = AUTO_CLASSES[head].from_config(config)
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    values = dict((*model.named_buffers(), *model.named_parameters()))
    with torch.device("meta"):
        empty = AUTO_CLASSES[head].from_config(config)
    empty.tie_weights()
    units = saved_units(empty)
    pieces = {}
    for unit in units:
        with torch.no_grad():
            converted = convert(empty, unit, values)
        assert {name: (t.shape, t.dtype) for name, t in converted.items()} == {
            name: (t.shape, t.dtype) for name, t in unit.saved.items()
        }
        pieces |= converted
    assert pieces.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in pieces.items())
    assert len(units) > 2  # not all at once
