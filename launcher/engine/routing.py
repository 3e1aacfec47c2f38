"""What the step loop asks of a mixture of experts: the losses of its routers.

The model's own `routing` (launcher/models/routing.py) knows them; a dense model has none.
"""

from __future__ import annotations

from typing import Any

import torch


def has_routers(engine: Any) -> bool:
    """Whether the engine's model is a mixture of experts."""
    return hasattr(engine.module, "routing")


def router_losses(engine: Any) -> torch.Tensor:
    """The losses of the routers in the pass just made; zeros for a dense model.

    Args:
        engine: DeepSpeed engine.

    Returns:
        fp32 [3], the first differentiable: what is to be minimised beside the summed loss, a mean over tokens and
        layers; the load-balancing loss; the z-loss, both before their weights.
    """
    if not has_routers(engine):
        return torch.zeros(3, device=engine.device)
    losses: torch.Tensor = engine.module.routing.losses()
    return losses
