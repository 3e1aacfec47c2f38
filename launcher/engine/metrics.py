"""What a run tells: `metrics.jsonl`, TensorBoard and one line of progress, all on rank 0."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from launcher.engine.records import EvalResult, Score, StepResult, read_metrics
from launcher.engine.steady import SteadyFile
from launcher.shards.durable import replace_durably
from launcher.units import count

PLAIN_LINE_EVERY_S = 15.0
NOT_OF_EVERY_RUN = ("left_out", "log_z_squared", "pair_loss", "pair_accuracy", "router_aux_loss", "router_z_loss")
"""Fields of a step that are left out where they are None."""


class Log(Protocol):
    """What a run tells; a context manager."""

    def __enter__(self) -> Log: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def step(self, result: StepResult) -> None:
        """One step was taken."""

    def evaluation(self, step: int, result: EvalResult) -> None:
        """One validation was made."""

    def event(self, kind: str, **fields: Any) -> None:
        """Anything else happened."""

    def rewind(self, step: int, tokens: int, passed_over: list[list[int]]) -> None:
        """The run went back to a step."""

    def plan(self, num_steps: int) -> None:
        """The run is to have so many steps."""


class Silence:
    """The log of every rank but 0: nothing."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def step(self, result: StepResult) -> None:
        """Nothing."""

    def evaluation(self, step: int, result: EvalResult) -> None:
        """Nothing."""

    def event(self, kind: str, **fields: Any) -> None:
        """Nothing."""

    def rewind(self, step: int, tokens: int, passed_over: list[list[int]]) -> None:
        """Nothing."""

    def plan(self, num_steps: int) -> None:
        """Nothing."""


class Metrics:
    """The log of a run on rank 0.

    Args:
        folder: The run's folder.
        first_step: The first step of this start. Lines of later steps, left by a run that was killed after its last
            checkpoint, are removed: those steps will be taken again.
        num_steps: Steps of the whole run.
        tokens: Tokens read before this start.
        passed_over: Windows of the data that no step trains on: lines on what was odd about it are kept.
        samples_at: Samples that so many steps consume.
        flops_per_token: For `mfu`; None where it is not known.
        peak_flops: Of all devices together; None where it is not known.
        console: Where progress is shown.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int,
        num_steps: int,
        tokens: int,
        passed_over: Sequence[Sequence[int]] = (),
        samples_at: Callable[[int], int],
        flops_per_token: float | None,
        peak_flops: float | None,
        console: Console,
    ) -> None:
        self.tokens = tokens
        self._samples_at = samples_at
        self._num_steps = num_steps
        self._peak = (flops_per_token, peak_flops)
        self._console = console
        self._file = folder / "metrics.jsonl"
        _keep_before(self._file, first_step, passed_over)
        self._log = SteadyFile(self._file)
        from torch.utils.tensorboard import SummaryWriter  # here: whoever only reads a log needs no torch

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self._board_is_gone = False
        self._hook = threading.excepthook
        threading.excepthook = self._take_note
        self._bar = Progress(
            TextColumn("[bold]training[/]"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=num_steps, completed=first_step - 1, told="")
        self._plain_told = time.monotonic()

    def __enter__(self) -> Metrics:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._log.close()
        with contextlib.suppress(OSError):
            self._board.close()
        threading.excepthook = self._hook

    def step(self, result: StepResult) -> None:
        """Write one step."""
        self.tokens += result.step_tokens
        tokens_per_s = result.step_tokens / result.step_s
        flops_per_token, peak_flops = self._peak
        mfu = tokens_per_s * flops_per_token / peak_flops if flops_per_token and peak_flops else None
        line = asdict(result)
        del line["step_tokens"], line["stop_code"], line["own_s"]
        for key in NOT_OF_EVERY_RUN:
            if line[key] is None:
                del line[key]
        line |= {
            "tokens": self.tokens,
            "samples": self._samples_at(result.step),
            "tokens_per_s": tokens_per_s,
            "mfu": mfu,
        }
        self._write(line)
        for key in ("loss", "lr", "grad_norm", "tokens_per_s", "mfu", "data_wait_s", *NOT_OF_EVERY_RUN):
            if isinstance(line.get(key), float | int):
                self._plot(f"train/{key}", line[key], result.step)
        told = f"loss {result.loss:.4f}  lr {result.lr:.2e}  {count(tokens_per_s)} tokens/s"
        self._bar.update(self._task, completed=result.step, told=told)
        if not self._console.is_terminal and time.monotonic() - self._plain_told > PLAIN_LINE_EVERY_S:
            self._plain_told = time.monotonic()
            self._console.print(f"step {result.step}/{self._num_steps}  {told}")

    def evaluation(self, step: int, result: EvalResult) -> None:
        """Write one validation."""
        corpora = result.corpora if len(result.corpora) > 1 else {}
        several = {"corpora": corpora, "parts": result.parts}
        fields = {kind: {name: _written(score) for name, score in scores.items()} for kind, scores in several.items()}
        self.event("evaluation", step=step, **_written(result.whole), **{k: v for k, v in fields.items() if v})
        named = {
            "validation": result.whole,
            **{f"validation-{name}": score for name, score in corpora.items()},
            **{f"validation-of-{name}": score for name, score in result.parts.items()},
        }
        for name, score in named.items():
            self._plot(f"{name}/loss", score.loss, step)
            self._plot(f"{name}/accuracy", score.accuracy, step)
            if score.bits_per_byte is not None:
                self._plot(f"{name}/bits_per_byte", score.bits_per_byte, step)
            if score.pair_loss is not None and score.pair_accuracy is not None:
                self._plot(f"{name}/pair_loss", score.pair_loss, step)
                self._plot(f"{name}/pair_accuracy", score.pair_accuracy, step)
        told = "; ".join(f"{name} {score.loss:.4f}" for name, score in corpora.items())
        self._console.print(
            f"step {step}: validation loss {result.whole.loss:.4f}, accuracy {result.whole.accuracy:.1%}"
            + (f", {result.whole.bits_per_byte:.3f} bits a byte" if result.whole.bits_per_byte is not None else "")
            + (f", pairs {result.whole.pair_accuracy:.1%} right" if result.whole.pair_accuracy is not None else "")
            + (f" ({told})" if told else ""),
            highlight=False,
        )
        for name, score in result.parts.items():
            told = f"loss {score.loss:.4f}, accuracy {score.accuracy:.1%}, {count(score.num_targets)} tokens"
            self._console.print(f"  {name}: {told}", highlight=False)

    def event(self, kind: str, **fields: Any) -> None:
        """Write anything else that happened."""
        self._write({"event": kind, **fields})

    def rewind(self, step: int, tokens: int, passed_over: list[list[int]]) -> None:
        """The run went back to a step: what came after it did not happen, but for what was odd about its data."""
        self._log.close()
        _keep_before(self._file, step + 1, passed_over)
        self._log = SteadyFile(self._file)
        self.tokens = tokens

    def plan(self, num_steps: int) -> None:
        """The run is to have so many steps."""
        self._num_steps = num_steps
        self._bar.update(self._task, total=num_steps)

    def _take_note(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, which dies of a full disk with a traceback."""
        if "tensorboard" not in type(failed.thread).__module__:
            self._hook(failed)

    def _plot(self, name: str, value: float, step: int) -> None:
        try:
            self._board.add_scalar(name, value, step)
        except OSError as error:  # its writer is dead for good; metrics.jsonl has all of it
            if not self._board_is_gone:
                logging.getLogger(__name__).warning("TensorBoard's log can no longer be written: %s", error)
            self._board_is_gone = True

    def _write(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(_in_json(line), ensure_ascii=False, allow_nan=False))


def _written(score: Score) -> dict[str, Any]:
    """A score's fields; those of pairs where there are pairs."""
    fields = asdict(score)
    return {name: value for name, value in fields.items() if value is not None or not name.startswith("pair_")}


def _in_json(value: Any) -> Any:
    """A value as it is written: a loss that is no number has none in JSON."""
    if isinstance(value, dict):
        return {name: _in_json(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_before(file: Path, first_step: int, passed_over: Sequence[Sequence[int]]) -> None:
    """Leave out what is not part of the run's past: the lines of steps that will be taken again."""
    if first_step == 1 and not passed_over:  # nothing was kept of an earlier start: step 0 is measured again as well
        file.unlink(missing_ok=True)
        shutil.rmtree(file.parent / "tensorboard", ignore_errors=True)
    if not file.exists():
        return

    def is_past(line: dict[str, Any]) -> bool:
        if line.get("event") == "left_out" and any(a <= line["position"] < a + n for a, n in passed_over):
            return True
        return bool(line.get("step", 0) < first_step)

    kept = [line for line in read_metrics(file) if is_past(line)]
    replace_durably(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
