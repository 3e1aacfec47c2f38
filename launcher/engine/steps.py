"""The training loop: a generator of results, one per optimizer step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from launcher.config.recipe import Recipe
from launcher.engine.loss import IGNORE_INDEX, count_correct, summed_loss
from launcher.engine.process import gather
from launcher.engine.records import Arrays, EvalResult, StepBatch, StepResult
from launcher.engine.schedule import learning_rate


def train_steps(engine: Any, batches: Iterable[StepBatch], recipe: Recipe, first_step: int) -> Iterator[StepResult]:
    """Take one optimizer step for each batch.

    Args:
        engine: DeepSpeed engine.
        batches: This rank's part of each step.
        recipe: For the schedule.
        first_step: Number of the first step to take, counted from 1.
    """
    world_size = torch.distributed.get_world_size()
    started = time.perf_counter()
    for step, batch in enumerate(batches, start=first_step):
        waited = time.perf_counter() - started
        mine = np.array([batch.num_targets, batch.num_tokens, np.uint64(batch.digest).astype(np.int64)], dtype=np.int64)
        everyone = gather(mine)
        num_targets = int(everyone[:, 0].sum())
        lr = learning_rate(step, recipe.optim.lr, recipe.schedule, recipe.train.num_steps)
        for group in engine.basic_optimizer.param_groups:
            group["lr"] = lr
        # DeepSpeed divides by the passes and averages over the ranks; this undoes both, so that every predicted token
        # of the global batch weighs the same, however the batch is cut.
        scale = len(batch.passes) * world_size / max(num_targets, 1)
        loss_sum = 0.0
        norm, scale_of_norm = None, 1.0
        for inputs in batch.passes:
            loss = summed_loss(*_forward(engine, inputs))
            engine.backward(loss * scale)
            norm, scale_of_norm = _plain_norm(engine), _scale_of_norm(engine)
            engine.step()
            loss_sum += loss.item()
        losses = gather(np.array([loss_sum], dtype=np.float64))
        now = time.perf_counter()
        yield StepResult(
            step=step,
            loss=float(losses.sum()) / max(num_targets, 1),
            lr=lr,
            grad_norm=norm if norm is not None else _engine_norm(engine, scale_of_norm),
            step_tokens=int(everyone[:, 1].sum()),
            step_s=now - started,
            data_wait_s=waited,
            batch_digest=f"{int(everyone[:, 2].view(np.uint64).sum()):016x}",
        )
        started = time.perf_counter()


def evaluate(engine: Any, batches: Iterable[Arrays]) -> EvalResult:
    """Measure the model on this rank's validation batches; every rank must bring the same number of batches.

    Args:
        engine: DeepSpeed engine.
        batches: Model inputs and `labels`, int64 [B, S].
    """
    totals = np.zeros(3, dtype=np.float64)
    engine.eval()
    with torch.no_grad():
        for inputs in batches:
            logits, labels = _forward(engine, inputs)
            num_targets = int((labels >= 0).sum())
            totals += (summed_loss(logits, labels).item(), count_correct(logits, labels).item(), num_targets)
    engine.train()
    loss, correct, targets = (float(total) for total in gather(totals).sum(axis=0))
    return EvalResult(loss=loss / max(targets, 1), accuracy=correct / max(targets, 1), num_targets=int(targets))


def _forward(engine: Any, inputs: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = {name: torch.from_numpy(array).to(engine.device, non_blocking=True) for name, array in inputs.items()}
    labels = tensors.pop("labels")
    if getattr(engine.module, "takes_places", False):
        predicted = labels != IGNORE_INDEX
        tensors["predicted"] = predicted
        labels = labels[predicted].unsqueeze(0)
    return engine(**tensors, return_dict=True).logits, labels


def _plain_norm(engine: Any) -> float | None:
    """The gradient's norm where DeepSpeed keeps none: at stage 0 with fp32 weights it clips but does not tell."""
    if engine.optimizer is not engine.basic_optimizer or not engine.is_gradient_accumulation_boundary():
        return None
    grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads))


def _scale_of_norm(engine: Any) -> float:
    """What the norm is multiplied by: at stage 0 with fp16 DeepSpeed tells that of the scaled loss's gradient."""
    wrapper = getattr(engine.optimizer, "loss_scale_config", None)
    return float(wrapper.cur_scale) if wrapper is not None and engine.zero_optimization_stage() == 0 else 1.0


def _engine_norm(engine: Any, scale: float) -> float | None:
    norm = engine.get_global_grad_norm()
    if norm is None or not math.isfinite(float(norm)):
        return None
    return float(norm) / scale
