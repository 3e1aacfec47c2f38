"""Tensors of a model that are no parameters and yet belong to it: persistent buffers, such as BART's output bias."""

from __future__ import annotations

import torch
from torch import nn

PREFIX = "buffer|"


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name → buffer, for every one that a model's state holds; the tensors themselves, not copies."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in model.named_modules()
        for key, buffer in module.named_buffers(recurse=False)
        if key not in module._non_persistent_buffers_set
    }


@torch.no_grad()
def restore_buffers(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy saved values back.

    Args:
        model: The model.
        tensors: Name → values, as `persistent_buffers` named them.
    """
    for name, buffer in persistent_buffers(model).items():
        buffer.copy_(tensors[name])
