"""The training loop: a generator of results, one per optimizer step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from launcher.cluster.signals import StopRequest
from launcher.config.recipe import Recipe
from launcher.engine.guards import Guard
from launcher.engine.length import Length
from launcher.engine.loss import losses
from launcher.engine.pace import Pace
from launcher.engine.process import gather, ranks_per_model
from launcher.engine.records import Arrays, EvalBatch, EvalResult, StepBatch, StepResult
from launcher.engine.routing import has_routers, router_losses
from launcher.engine.schedule import learning_rate

BATCHES_BETWEEN_QUESTIONS = 16
"""Batches of a validation between two moments at which the ranks agree whether to stop: assumption."""


class StopAsked(Exception):  # noqa: N818 (no error)
    """Some rank was asked to stop; raised by every rank at the same place."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def train_steps(
    engine: Any,
    batches: Iterable[StepBatch],
    recipe: Recipe,
    first_step: int,
    length: Length,
    guard: Guard,
    stop: StopRequest,
) -> Iterator[StepResult]:
    """Take one optimizer step for each batch.

    Args:
        engine: DeepSpeed engine.
        batches: This rank's part of each step.
        recipe: For the schedule.
        first_step: Number of the first step to take, counted from 1.
        length: Tells where in the schedule a step stands.
        guard: Decides whether a step's update is made.
        stop: What this rank was asked to do. Every rank learns what any was asked, in the same step.
    """
    world_size = torch.distributed.get_world_size()
    pace = Pace(engine, recipe.guards.pace_every_steps)
    num_averaged, counts = _num_averaged(engine, world_size), _counts(engine)
    started = time.perf_counter()
    for step, batch in enumerate(batches, start=first_step):
        waited = time.perf_counter() - started
        digest = np.uint64(batch.digest).astype(np.int64)
        own = np.array([batch.num_targets, batch.num_tokens, digest, batch.num_pairs], dtype=np.int64)
        everyone = gather(own * counts)
        num_targets, num_pairs = int(everyone[:, 0].sum()), int(everyone[:, 3].sum())
        _set_passes(engine, len(batch.passes))
        lr = learning_rate(length.position(step), recipe.optim.lr, recipe.schedule, recipe.train.num_steps)
        for group in engine.basic_optimizer.param_groups:
            group["lr"] = lr
        # DeepSpeed divides by the passes and averages over ranks; this undoes both, so that every predicted token
        # of the global batch weighs the same, however the batch is cut, and so does every pair of sentences.
        scale = len(batch.passes) * num_averaged / max(num_targets, 1)
        pair_scale = len(batch.passes) * num_averaged / max(num_pairs, 1)
        totals = np.zeros(6, dtype=np.float64)
        norm, scale_of_norm = None, 1.0
        for number, inputs in enumerate(batch.passes, start=1):
            with pace.forward(step) if number == 1 else nullcontext():
                sums = losses(engine, _tensors(engine, inputs), recipe.train.z_loss)
            # The routers' are means over tokens: for them DeepSpeed's own means over passes and ranks are right.
            routers = router_losses(engine)
            engine.backward(sums[0] * scale + sums[4] * pair_scale + routers[0])
            norm, scale_of_norm = _plain_norm(engine), _scale_of_norm(engine)
            totals += torch.cat([sums[1:3], sums[4:6], routers[1:]]).tolist()
            if number == len(batch.passes):  # all is known of the step but its update, to every rank
                of_ranks = gather(np.append(totals * counts, (stop.code, pace.result(step, waited))))
                loss, square, pair_loss, right_pairs, balance, router_z = of_ranks[:, :-2].sum(axis=0).tolist()
                guard.before_update(loss / max(num_targets, 1), norm)
            engine.step()
        num_passes = len(batch.passes) * world_size
        now = time.perf_counter()
        yield StepResult(
            step=step,
            loss=loss / max(num_targets, 1),
            left_out=guard.after_update(loss / max(num_targets, 1)),
            log_z_squared=square / max(num_targets, 1) if recipe.train.z_loss else None,
            router_aux_loss=balance / num_passes if has_routers(engine) else None,
            router_z_loss=router_z / num_passes if has_routers(engine) else None,
            lr=lr,
            grad_norm=_finite(norm) if norm is not None else _engine_norm(engine, scale_of_norm),
            step_tokens=int(everyone[:, 1].sum()),
            step_s=now - started,
            data_wait_s=waited,
            batch_digest=f"{int(everyone[:, 2].view(np.uint64).sum()):016x}",
            pair_loss=pair_loss / num_pairs if num_pairs else None,
            pair_accuracy=right_pairs / num_pairs if num_pairs else None,
            stop_code=int(of_ranks[:, -2].max()),
            own_s=tuple(of_ranks[:, -1].tolist()) if of_ranks[:, -1].any() else None,
        )
        started = time.perf_counter()


def evaluate(
    engine: Any,
    batches: Iterable[EvalBatch],
    bytes_per_token: Mapping[str, float | None],
    parts: Sequence[str],
    stop: StopRequest,
) -> EvalResult:
    """Measure the model on this rank's validation batches; every rank must bring the same number of batches.

    Args:
        engine: DeepSpeed engine.
        batches: Of every corpus.
        bytes_per_token: By corpus, in which the batches count them, of tokens that stand for text; None where only
            tokens are known.
        parts: Names of the parts of a mixture of objectives, in the order in which the batches count them; none where
            the objective is no mixture.
        stop: What this rank was asked to do.

    Raises:
        StopAsked: On every rank, as soon as any was asked.
    """
    totals_CP7 = np.zeros((len(bytes_per_token), max(len(parts), 1), 7), dtype=np.float64)
    engine.eval()
    try:
        with torch.no_grad():
            for number, batch in enumerate(batches, start=1):
                tensors = _tensors(engine, batch.inputs)
                num_targets = int((tensors["labels"] >= 0).sum())
                _, loss, _, correct, *of_pairs = losses(engine, tensors).tolist()
                totals_CP7[batch.corpus, batch.part, :4] += (loss, correct, num_targets, batch.num_text_targets)
                if "pair_labels" in tensors:
                    num_pairs = int((tensors["pair_labels"] >= 0).sum())
                    totals_CP7[batch.corpus, batch.part, 4:] += (*of_pairs, num_pairs)
                if number % BATCHES_BETWEEN_QUESTIONS == 0:
                    _raise_if_asked(stop)
    finally:
        engine.train()
    everyone_CP7 = gather(totals_CP7.reshape(-1) * _counts(engine)).sum(axis=0).reshape(totals_CP7.shape)
    return EvalResult.of(everyone_CP7, bytes_per_token, parts)


def _raise_if_asked(stop: StopRequest) -> None:
    code = int(gather(np.array([stop.code], dtype=np.int64)).max())
    if code:
        raise StopAsked(code)


def _counts(engine: Any) -> int:
    """1 where what this rank computes counts; 0 where it shares the model with one that computes the same."""
    return int(torch.distributed.get_rank() % ranks_per_model(engine) == 0)


def _num_averaged(engine: Any, world_size: int) -> int:
    """What DeepSpeed divides the sum of the ranks' gradients by."""
    world_size //= ranks_per_model(engine)
    by_reduce_scatter = engine.zero_optimization_stage() == 3 and engine.optimizer.reduce_scatter
    # 0.19.8 adds up what ranks that share a sequence have, but for this one way, in which it takes the mean of all.
    return world_size if by_reduce_scatter else world_size // engine.sequence_parallel_size


def _set_passes(engine: Any, num_passes: int) -> None:
    """Tell DeepSpeed how many passes this step has: those of a growing batch are ever more."""
    if engine.gradient_accumulation_steps() == num_passes:
        return
    engine.set_train_batch_size(num_passes * engine.train_micro_batch_size_per_gpu() * engine.dp_world_size)
    # DeepSpeed 0.19.8 finds the last pass of a step by dividing the passes of the whole run by those of a step, which
    # comes out wrong once they have changed; and its optimizers keep the number they started with.
    engine.micro_steps = 0
    if hasattr(engine.optimizer, "gradient_accumulation_steps"):
        engine.optimizer.gradient_accumulation_steps = num_passes


def _tensors(engine: Any, inputs: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).to(engine.device, non_blocking=True) for name, array in inputs.items()}


def _plain_norm(engine: Any) -> float | None:
    """The gradient's norm where DeepSpeed keeps none: at stage 0 with fp32 weights it clips but does not tell."""
    if engine.optimizer is not engine.basic_optimizer or not engine.is_gradient_accumulation_boundary():
        return None
    counts = _counts(engine)
    counted = [p for p in engine.module.parameters() if counts or getattr(p, "tensor_model_parallel", False)]
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in counted if p.grad is not None]))
    sharing = ranks_per_model(engine)
    return norm if sharing == 1 else math.sqrt(gather(np.array([norm**2]))[:sharing].sum())


def _scale_of_norm(engine: Any) -> float:
    """What the norm is multiplied by: at stage 0 with fp16 DeepSpeed tells that of the scaled loss's gradient."""
    wrapper = getattr(engine.optimizer, "loss_scale_config", None)
    return float(wrapper.cur_scale) if wrapper is not None and engine.zero_optimization_stage() == 0 else 1.0


def _engine_norm(engine: Any, scale: float) -> float | None:
    norm = engine.get_global_grad_norm()
    return None if norm is None else _finite(float(norm) / scale)


def _finite(norm: float) -> float | None:
    return norm if math.isfinite(norm) else None
