"""What goes into the step loop and what comes out of it; plain numpy, so that a feed needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """What one rank computes in one optimizer step."""

    passes: list[Arrays]
    """Model inputs and `labels` of each accumulation pass, int64 [micro_batch, S]."""
    num_targets: int
    """Predicted tokens in these passes."""
    num_tokens: int
    """Tokens the model reads in these passes, padding excluded."""
    digest: int
    """Sum modulo 2^64 of the digests of these samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What happened in one optimizer step, over all ranks. The fields are those of `metrics.jsonl`."""

    step: int
    """Optimizer steps taken so far."""
    loss: float
    """Mean negative log-likelihood of the predicted tokens of the global batch, nats."""
    lr: float
    """Learning rate of this step."""
    grad_norm: float | None
    """Norm of the whole gradient before clipping; None where DeepSpeed does not tell."""
    step_tokens: int
    """Tokens the model read, padding excluded."""
    step_s: float
    """Wall time of the step, the wait for its data included."""
    data_wait_s: float
    """Share of it spent waiting for data."""
    batch_digest: str
    """16 hexadecimal digits that follow from the samples of the global batch and their noise alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One validation."""

    loss: float
    """Mean negative log-likelihood of the predicted tokens, nats."""
    accuracy: float
    """Share of predicted tokens whose most likely answer is right."""
    num_targets: int
    """Predicted tokens."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come, and what it settled on."""

    precision: str
    """What `train.precision` is here; a run that goes on elsewhere keeps it."""
    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Tokens read, padding excluded."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """`step`, `loss` and `accuracy` of each validation."""
