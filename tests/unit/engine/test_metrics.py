"""The log of a run: one line a step, none twice."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from launcher.engine.metrics import Metrics, read_metrics
from launcher.engine.records import EvalResult, StepResult

FIELDS = {
    "step", "tokens", "samples", "loss", "lr", "grad_norm", "step_s", "tokens_per_s", "mfu", "data_wait_s",
    "batch_digest",
}  # fmt: skip


def result(step: int) -> StepResult:
    return StepResult(
        step=step,
        loss=2.0,
        log_z_squared=None,
        lr=1e-3,
        grad_norm=1.0,
        step_tokens=100,
        step_s=0.5,
        data_wait_s=0.01,
        batch_digest="0" * 16,
    )


def test_pairs_are_told_of_where_there_are_any(tmp_path: Path) -> None:
    of_tokens = [[15.0, 4.0, 10.0, 10.0], [5.0, 1.0, 10.0, 10.0]]
    totals = np.array([[[*of_tokens[0], 3.0, 3.0, 4.0]], [[*of_tokens[1], 1.0, 0.0, 1.0]]])
    with open_metrics(tmp_path, 1) as metrics:
        metrics.step(replace(result(1), pair_loss=0.7, pair_accuracy=0.5))
        metrics.evaluation(1, EvalResult.of(totals, {"law": None, "wiki": None}))
    step, evaluation = read_metrics(tmp_path / "metrics.jsonl")
    assert set(step) == FIELDS | {"pair_loss", "pair_accuracy"}
    assert (evaluation["pair_loss"], evaluation["pair_accuracy"]) == (0.8, 0.6)
    assert evaluation["corpora"]["law"]["pair_accuracy"] == 0.75
    with open_metrics(tmp_path, 1) as metrics:
        metrics.evaluation(1, EvalResult.of(without_pairs(of_tokens), {"law": None, "wiki": None}))
    (without,) = read_metrics(tmp_path / "metrics.jsonl")
    assert "pair" not in str(without)


def without_pairs(of_tokens: object) -> NDArray[np.float64]:
    """Sums of tokens, [C, P, 4] or of one part [C, 4], as the seven of which the last three are of pairs."""
    totals = np.array(of_tokens, dtype=np.float64)
    totals = totals[:, None] if totals.ndim == 2 else totals
    return np.concatenate([totals, np.zeros((*totals.shape[:2], 3))], axis=2)


def open_metrics(
    folder: Path, first_step: int, tokens: int = 0, peak: float | None = None, console: Console | None = None
) -> Metrics:
    return Metrics(
        folder,
        first_step=first_step,
        num_steps=10,
        tokens=tokens,
        samples_at=lambda step: 8 * step,
        flops_per_token=6e6,
        peak_flops=peak,
        console=console or Console(quiet=True),
    )


def test_a_step_has_every_promised_field(tmp_path: Path) -> None:
    with open_metrics(tmp_path, 1, peak=1e10) as metrics:
        metrics.step(result(1))
        metrics.step(result(2))
        metrics.evaluation(2, EvalResult.of(without_pairs([[15.0, 4.0, 10.0, 10.0]]), {"law": 1.5 / math.log(2)}))
    first, second, evaluation = read_metrics(tmp_path / "metrics.jsonl")
    assert set(first) == FIELDS
    assert (second["tokens"], second["samples"], second["tokens_per_s"]) == (200, 16, 200.0)
    assert second["mfu"] == 200.0 * 6e6 / 1e10
    assert evaluation == {
        "event": "evaluation",
        "step": 2,
        "loss": 1.5,
        "perplexity": math.exp(1.5),
        "bits_per_byte": pytest.approx(1.0),
        "accuracy": 0.4,
        "num_targets": 10,
    }
    assert any((tmp_path / "tensorboard").iterdir())


def test_corpora_are_scored_each_and_together(tmp_path: Path) -> None:
    totals = without_pairs([[20.0, 5.0, 10.0, 10.0], [60.0, 6.0, 20.0, 16.0], [8.0, 1.0, 2.0, 2.0]])
    sizes: dict[str, float | None] = {"law": 2.0, "wiki": 4.0, "tokens": None}
    result = EvalResult.of(totals, sizes)
    assert result.whole.loss == pytest.approx(88 / 32)
    assert result.whole.accuracy == pytest.approx(12 / 32)
    assert result.whole.bits_per_byte is None  # of one corpus the bytes are not known
    assert result.corpora["wiki"].bits_per_byte == pytest.approx(
        60 / math.log(2) / 64
    )  # four of its targets are sentinels
    known = EvalResult.of(totals[:2], {"law": 2.0, "wiki": 4.0})
    assert known.whole.bits_per_byte == pytest.approx(80 / math.log(2) / 84)
    with open_metrics(tmp_path, 1) as metrics:
        metrics.evaluation(0, result)
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert {name: score["loss"] for name, score in line["corpora"].items()} == {"law": 2.0, "wiki": 3.0, "tokens": 4.0}


def test_the_parts_of_a_mixture_of_objectives_are_scored_each(tmp_path: Path) -> None:
    # Of two corpora and four parts: two of them the same but for their weight, and one to which no sample fell.
    law = [[20.0, 5.0, 10.0, 10.0], [6.0, 1.0, 4.0, 3.0], [2.0, 1.0, 4.0, 3.0], [0.0, 0.0, 0.0, 0.0]]
    wiki = [[40.0, 10.0, 10.0, 10.0], [0.0, 0.0, 0.0, 0.0], [8.0, 4.0, 8.0, 6.0], [0.0, 0.0, 0.0, 0.0]]
    names = ("clm", "span", "span", "prefix")
    result = EvalResult.of(without_pairs([law, wiki]), {"law": 2.0, "wiki": None}, names)
    assert list(result.parts) == ["clm", "span"]
    assert (result.parts["clm"].loss, result.parts["clm"].accuracy) == (3.0, 0.75)
    assert (result.parts["span"].loss, result.parts["span"].num_targets) == (1.0, 16)
    assert result.corpora["law"].loss == pytest.approx(28 / 18)
    assert result.corpora["law"].bits_per_byte == pytest.approx(28 / math.log(2) / 32)
    assert result.whole.loss == pytest.approx(76 / 36)
    told = io.StringIO()
    with open_metrics(tmp_path, 1, console=Console(file=told, width=200)) as metrics:
        metrics.evaluation(0, result)
        metrics.evaluation(0, EvalResult.of(without_pairs([law, wiki])[:, :1], {"law": 2.0, "wiki": None}))
    line, without = read_metrics(tmp_path / "metrics.jsonl")
    assert {name: score["loss"] for name, score in line["parts"].items()} == {"clm": 3.0, "span": 1.0}
    assert "  span: loss 1.0000, accuracy 37.5%, 16 tokens" in told.getvalue().splitlines()
    assert "parts" not in without


def test_a_start_from_nothing_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    for _ in range(2):
        with open_metrics(tmp_path, 1) as metrics:
            metrics.evaluation(0, EvalResult.of(without_pairs([[90.0, 0.0, 10.0, 10.0]]), {"law": None}))
            metrics.step(result(1))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_steps_that_will_be_taken_again_are_removed_with_a_torn_last_line(tmp_path: Path) -> None:
    with open_metrics(tmp_path, 1) as metrics:
        for step in (1, 2, 3):
            metrics.step(result(step))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 4, "host": "主'.encode()[:-1])  # in the middle of a character
    with open_metrics(tmp_path, 3, tokens=200) as metrics:
        metrics.step(result(3))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["tokens"]) for line in lines] == [(1, 100), (2, 200), (3, 300)]
