"""The same runs without DeepSpeed, which those with it are held against."""

from __future__ import annotations

from typing import Any

import engine_jobs
import numpy as np


def plain_and_engine_losses(plain_recipe: str, arguments: list[str]) -> tuple[list[float], list[float]]:
    """The losses of `plain_losses` on a GPU, and of `step_losses`, which may be another recipe's."""
    return plain_losses(plain_recipe, "cuda"), engine_jobs.step_losses(arguments)


def plain_losses(recipe_path: str, device: str = "cpu") -> list[float]:
    """The losses of `plain_run`."""
    losses: list[float] = plain_run(recipe_path, device)["losses"]
    return losses


def plain_run(recipe_path: str, device: str = "cpu") -> dict[str, Any]:
    """The same run without DeepSpeed: one process, dense logits, mean loss, torch's plain AdamW.

    With sentence pairs the loss is that of the model's own class, of tokens and pairs together.

    Returns:
        `losses` and gradient `norms` of the steps, the `weights` at the end, and the `validation` loss of them.
    """
    import torch

    from launcher.config.batch import plan_batch
    from launcher.config.loading import load_recipe
    from launcher.engine.schedule import learning_rate
    from launcher.feed.batches import step_batches, validation_batches
    from launcher.feed.data import open_data
    from launcher.models.build import build_model
    from launcher.models.configuration import build_config

    torch.set_num_threads(1)
    recipe = load_recipe(recipe_path).recipe
    data = open_data(recipe)
    head = recipe.objective.head
    config = build_config(recipe.model, head, data.tokenizer, recipe.data.seq_len)
    apart = recipe.data.keeps_documents_apart
    model = build_model(config, recipe.model, head, seed=recipe.train.seed, documents_apart=apart, device=device)
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=recipe.optim.betas,
        eps=recipe.optim.eps,
        fused=False,
        foreach=False,
    )
    losses, norms = [], []
    plan = plan_batch(recipe.batch.schedule, None, 1)
    for step, batch in enumerate(step_batches(data, plan, 0, 0, recipe.train.num_steps), start=1):
        whole = {name: np.concatenate([inputs[name] for inputs in batch.passes]) for name in batch.passes[0]}
        inputs = {name: torch.from_numpy(array).to(device) for name, array in whole.items()}
        labels = inputs.pop("labels")
        if "pair_labels" in inputs:
            name = {"next_sentence": "next_sentence_label", "sentence_order": "sentence_order_label"}[head]
            pair_labels = inputs.pop("pair_labels")
            loss = model(**inputs, labels=labels, **{name: pair_labels}).loss
        else:
            logits = model(**inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe.optim.lr, recipe.schedule, recipe.train.num_steps)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.grad_clip)))
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    sums = np.zeros(2)
    for held_out in validation_batches(recipe, data, 1, 0) if head == "causal" else ():
        inputs = {name: torch.from_numpy(array).to(device) for name, array in held_out.inputs.items()}
        labels = inputs.pop("labels").flatten()
        with torch.no_grad():
            scores = model(**inputs).logits.flatten(0, 1)
        sums += (torch.nn.functional.cross_entropy(scores, labels, reduction="sum").item(), int((labels >= 0).sum()))
    return {
        "losses": losses,
        "norms": norms,
        "weights": {name: values.detach().cpu().numpy().copy() for name, values in model.state_dict().items()},
        "validation": sums[0] / max(sums[1], 1),
    }
