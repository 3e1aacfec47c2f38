"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from launcher.config.recipe import ScheduleConfig


def learning_rate(step: float, lr: float, schedule: ScheduleConfig, num_steps: int) -> float:
    """The learning rate of an optimizer step.

    Args:
        step: The step that is about to be taken, counted from 1; a place between two steps where the schedule is
            fitted to a time.
        lr: Highest learning rate.
        schedule: Shape of the curve.
        num_steps: Steps of the whole run; the last one has `schedule.final_share` of `lr` (but for `constant`).

    Source: warm-up and linear fall, Devlin et al. 2018; cosine, Loshchilov and Hutter 2016 (arXiv:1608.03983);
        warm-up-stable-decay, Hu et al. 2024 (arXiv:2404.06395).
    """
    if step <= schedule.warmup_steps:
        return lr * step / schedule.warmup_steps
    if schedule.kind == "constant":
        return lr
    first = schedule.warmup_steps
    if schedule.kind == "wsd":
        first = max(first, num_steps - round(schedule.decay_share * num_steps))
        if step <= first:
            return lr
    progress = min((step - first) / max(num_steps - first, 1), 1.0)
    fall = (1 + math.cos(math.pi * progress)) / 2 if schedule.kind == "cosine" else 1 - progress
    return lr * (schedule.final_share + (1 - schedule.final_share) * fall)
