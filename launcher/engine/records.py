"""What goes into the step loop and what comes out of it; plain numpy, so that a feed needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
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
    num_pairs: int = 0
    """Samples of these passes whose pair has a label."""
    digest: int
    """Sum modulo 2^64 of the digests of these samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What happened in one optimizer step, over all ranks. The fields are those of `metrics.jsonl`."""

    step: int
    """Optimizer steps taken so far."""
    loss: float
    """Mean negative log-likelihood of the predicted tokens of the global batch, nats."""
    log_z_squared: float | None
    """Mean of the squared log partition function over the same tokens; None without `train.z_loss`."""
    router_aux_loss: float | None = None
    """Load-balancing loss of the routers before its weight, mean over layers, passes and ranks; None without any."""
    router_z_loss: float | None = None
    """Mean squared log partition function of the routers' scores, likewise."""
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
    pair_loss: float | None = None
    """Mean negative log-likelihood of the pairs' labels, nats; None without `objective.sentence_pairs`."""
    pair_accuracy: float | None = None
    """Share of the pairs whose label scored highest; None likewise."""
    left_out: str | None = None
    """Why the weights were left as they were; None where they were updated."""
    own_s: tuple[float, ...] | None = None
    """Seconds a step that each rank took by itself, where that was measured (`engine.pace`). Not in `metrics.jsonl`."""
    stop_code: int = 0
    """Exit code that any rank was asked to end with after this step; 0 while none was. Not in `metrics.jsonl`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalBatch:
    """What one rank computes in one pass of a validation."""

    corpus: int
    """Which corpus it is of, by number."""
    part: int = 0
    """Which part of a mixture of objectives made all of it, by number; 0 where the objective is no mixture."""
    inputs: Arrays
    """Model inputs and `labels`, int64 [B, S]."""
    num_text_targets: int
    """Predicted tokens that stand for text: no sentinel, no end of a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well a model predicts held-out documents."""

    loss: float
    """Mean negative log-likelihood of the predicted tokens, nats."""
    perplexity: float
    """exp(loss): of all tokens for next-token prediction, a pseudo-perplexity where only some tokens are predicted."""
    bits_per_byte: float | None
    """The loss in bits, over the bytes of text that a token stands for on average: comparable between tokenizers. None
    where the shards do not know their text."""
    accuracy: float
    """Share of predicted tokens whose most likely answer is right."""
    num_targets: int
    """Predicted tokens."""
    pair_loss: float | None = None
    """Mean negative log-likelihood of the pairs' labels, nats; None where samples are no pairs."""
    pair_accuracy: float | None = None
    """Share of the pairs whose label scored highest; None likewise."""

    @property
    def is_finite(self) -> bool:
        """Whether its losses are numbers."""
        return math.isfinite(self.loss) and (self.pair_loss is None or math.isfinite(self.pair_loss))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One validation."""

    whole: Score
    """Of all corpora, every predicted token alike."""
    corpora: dict[str, Score]
    """Of each, by name."""
    parts: dict[str, Score]
    """Of each part of a mixture of objectives, by name; none where the objective is no mixture."""

    @classmethod
    def of(
        cls, totals_CP7: NDArray[np.float64], bytes_per_token: Mapping[str, float | None], parts: Sequence[str] = ()
    ) -> EvalResult:
        """Scores from sums.

        Args:
            totals_CP7: Of each corpus and each part of the objective the summed loss, right answers, predicted tokens,
                those of them that stand for text; then of the pairs' labels summed loss, right answers and number;
                float64 [C, P, 7].
            bytes_per_token: By corpus, of tokens that stand for text.
            parts: Names of the parts, where the objective is a mixture; those of one name are told together, and of
                one that no sample fell to nothing is told.
        """
        sizes_C = np.array([size if size is not None else np.nan for size in bytes_per_token.values()])
        sums_CP7 = totals_CP7.copy()
        sums_CP7[:, :, 3] *= sizes_C[:, None]
        is_named = {name: [part == name for part in parts] for name in parts}
        return cls(
            whole=_score(sums_CP7),
            corpora={name: _score(sums_P7) for name, sums_P7 in zip(bytes_per_token, sums_CP7, strict=True)},
            parts={
                name: _score(sums_CP7[:, chosen]) for name, chosen in is_named.items() if totals_CP7[:, chosen, 2].any()
            },
        )


def _score(sums: NDArray[np.float64]) -> Score:
    """Of sums [..., 7] as above, with bytes in the place of tokens that stand for text."""
    rows_N7 = sums.reshape(-1, 7)
    loss_sum, correct, targets, num_bytes = rows_N7[rows_N7[:, 2] > 0, :4].sum(axis=0).tolist()
    pair_loss, right_pairs, pairs = rows_N7[:, 4:].sum(axis=0).tolist()
    loss = loss_sum / max(targets, 1.0)
    return Score(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=loss_sum / math.log(2) / num_bytes if num_bytes > 0 else None,
        accuracy=correct / max(targets, 1.0),
        num_targets=int(targets),
        pair_loss=pair_loss / pairs if pairs else None,
        pair_accuracy=right_pairs / pairs if pairs else None,
    )


@dataclass(slots=True, kw_only=True)
class Health:
    """What later steps are judged by."""

    recent_losses: list[float] = field(default_factory=list)
    """Of the last steps whose update was made."""
    bad_in_a_row: int = 0
    """Steps up to now whose update was left out."""
    overflows_in_a_row: int = 0
    """The same for fp16's overflows."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come, and what it settled on."""

    precision: str
    """What `train.precision` is here; a run that goes on elsewhere keeps it."""
    micro_batch: int | None = None
    """What `batch.micro_batch` came to; a run that goes on keeps it where it was measured and still fits."""
    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Tokens read, padding excluded."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """`step`, `loss` and `accuracy` of each validation."""
    saved_step: int = 0
    """Step of the newest checkpoint."""
    passed_over: list[list[int]] = field(default_factory=list)
    """Windows of the data that no step trains on: first position and number of them (`samples.passed_over`)."""
    passed_changes: list[list[int]] = field(default_factory=list)
    """Changes of weights that came in amid such a window: step and position."""
    num_rewinds: int = 0
    """How many times the run went back to pass over data."""
    health: Health = field(default_factory=Health)

    @property
    def evaluated_step(self) -> int:
        """Step of the last validation; -1 before the first."""
        return int(self.evaluations[-1]["step"]) if self.evaluations else -1


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The objects of a `metrics.jsonl`; a line torn by a crash, or by a full disk, is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]
