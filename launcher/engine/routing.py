"""Mixtures of experts during training: the losses of the routers in each pass, the load of the experts in each window.

The model's own `routing` (launcher/models/routing.py) knows both; a dense model has none.

L: layers with a router   E: experts of a layer
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from launcher.engine.process import gather

TOLD_EVERY_STEPS = 500
"""Steps between two reports of a run that validates only at its ends (assumption: a report of 48 layers of 128 experts
is 50 KB)."""
LONG_WHILE_STEPS = 200
"""Steps without a token after which an expert is told to be dead (assumption: longer than the disorder of a beginning,
in which the load-balancing loss still moves tokens)."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoad:
    """How the experts of one layer were used."""

    share: list[float]
    """Of the tokens sent to this layer's experts, by expert."""
    entropy: float
    """Of these shares, over that of equal ones: 1 where every expert got as much, 0 where one got all."""
    dead: list[int]
    """Experts that got nothing."""

    @classmethod
    def of(cls, counts_E: NDArray[np.float64]) -> LayerLoad:
        """From the number of tokens of each expert."""
        total = counts_E.sum()
        share_E = counts_E / max(total, 1.0)
        used = share_E[share_E > 0]
        entropy = float(-(used * np.log(used)).sum()) / math.log(max(len(counts_E), 2))
        return cls(
            share=[float(f"{share:.4g}") for share in share_E],
            entropy=round(abs(entropy), 6),
            dead=[int(expert) for expert in np.flatnonzero(counts_E == 0)] if total else [],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The load of the experts over some steps and all ranks. The fields are those of the `routing` event."""

    step: int
    """The last of these steps."""
    num_steps: int
    """How many they are."""
    layers: dict[str, LayerLoad]
    """By router."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What there is to tell after a window."""

    window: Window
    """To be written down."""
    warning: str | None
    """To be shown; once a run."""


class ExpertLoad:
    """Follows which experts get tokens.

    Args:
        routing: The model's.
        step: Steps taken before.
    """

    def __init__(self, routing: Any, step: int) -> None:
        self._routing = routing
        self._step = step
        self._is_warned = False
        self._without_L: dict[str, NDArray[np.int64]] = {
            name: np.zeros(num_experts, dtype=np.int64) for name, num_experts in routing.routers.items()
        }
        """Steps since each expert's last token, as far as windows tell."""

    @classmethod
    def of(cls, engine: Any, step: int) -> ExpertLoad | None:
        """Of an engine's model; None if it has no router."""
        return cls(engine.module.routing, step) if has_routers(engine) else None

    def measure(self, step: int) -> LoadReport:
        """The load since this was last asked; every rank must ask.

        Args:
            step: Steps taken so far.
        """
        mine = self._routing.take_load()
        sizes = list(self._routing.routers.values())
        flat = [
            mine[name].cpu().numpy() if name in mine else np.zeros(num_experts)
            for name, num_experts in self._routing.routers.items()
        ]
        total = gather(np.concatenate(flat)).sum(axis=0)
        counts = dict(zip(self._without_L, np.split(total, np.cumsum(sizes)[:-1]), strict=True))
        num_steps, self._step = step - self._step, step
        for name, counts_E in counts.items():
            idle_E = (counts_E == 0) & (counts_E.sum() > 0)
            self._without_L[name] = np.where(idle_E, self._without_L[name] + num_steps, 0)
        layers = {name: LayerLoad.of(counts_E) for name, counts_E in counts.items()}
        return LoadReport(window=Window(step=step, num_steps=num_steps, layers=layers), warning=self._warning())

    def _warning(self) -> str | None:
        dead = {name: np.flatnonzero(steps_E >= LONG_WHILE_STEPS) for name, steps_E in self._without_L.items()}
        worst = max(dead, key=lambda name: len(dead[name]))
        if self._is_warned or not len(dead[worst]):
            return None
        self._is_warned = True
        num_layers = sum(len(experts) > 0 for experts in dead.values())
        steps = int(self._without_L[worst][dead[worst]].min())
        return (
            f"{len(dead[worst])} of the {len(self._without_L[worst])} experts of {worst} got no token for {steps} steps"
            + (f", and so did some of {num_layers - 1} other layers" if num_layers > 1 else "")
            + ": they learn nothing; a larger model.router_aux_loss spreads tokens (metrics.jsonl, event routing)"
        )
