"""Under which names, and in which pieces, transformers saves a model's weights.

A family may hold its weights in another form than it saves them in (a mixture's experts as one tensor, saved one by
one), and tied weights are saved once. `save_pretrained` works that out with all weights in memory. Here it is worked
out with none, and the weights are then converted a layer at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

_LAYER = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True, slots=True)
class Unit:
    """Weights that are converted together: those of a layer, or a single one outside of the layers."""

    sources: dict[str, str]
    """Name in the model's state → name of the parameter or buffer."""
    saved: dict[str, torch.Tensor]
    """Name in the file → its shape and dtype, without values."""


def saved_units(model: PreTrainedModel) -> list[Unit]:
    """What a model is saved as, piece by piece.

    Args:
        model: On the meta device, its weights tied.
    """
    own_names = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    kept = remove_tied_weights_from_state_dict(_without_ignored(model, model.state_dict()), model)
    sources = {key: own_names[id(model.get_parameter_or_buffer(key))] for key in kept}
    whole = revert_weight_conversion(model, dict(kept))
    layers: dict[str, list[str]] = {}
    for key in sorted(kept, key=lambda key: kept[key].dtype != torch.float32):  # what is not a weight comes last
        match = _LAYER.match(key)
        layers.setdefault(match[1] if match and kept[key].dtype == torch.float32 else key, []).append(key)
    units = [
        Unit({key: sources[key] for key in keys}, revert_weight_conversion(model, {key: kept[key] for key in keys}))
        for keys in layers.values()
    ]
    parts = {name: tensor.shape for unit in units for name, tensor in unit.saved.items()}
    if parts != {name: tensor.shape for name, tensor in whole.items()}:
        return [Unit(sources, whole)]  # a conversion that takes weights of several layers
    return units


def convert(model: PreTrainedModel, unit: Unit, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The values of a unit as they are saved.

    Args:
        model: As for `saved_units`.
        unit: One of its units.
        values: Name of the parameter or buffer → its values.
    """
    converted: dict[str, Any] = revert_weight_conversion(model, {key: values[own] for key, own in unit.sources.items()})
    return {name: converted[name] for name in unit.saved}


def _without_ignored(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ignored = set(model._keys_to_ignore_on_save or ())
    return {key: tensor for key, tensor in state.items() if key not in ignored}
