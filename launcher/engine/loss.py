"""Cross-entropy as sums over predicted tokens, in fp32 whatever the model computes in.

B: rows of a batch   S: positions of a row   V: vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

IGNORE_INDEX = -100


def losses(engine: Any, tensors: Mapping[str, torch.Tensor], z_loss: float = 0.0) -> torch.Tensor:
    """Run the model forward and sum up its losses over the predicted tokens.

    Sums, because the mean that trains a model is over all predicted tokens of the global batch: a mean of means would
    weigh tokens by how the batch happens to be cut, and change with the number of ranks.

    Args:
        engine: DeepSpeed engine.
        tensors: The model's inputs, and `labels`, int64 [B, S]: true ids, IGNORE_INDEX where nothing is predicted.
        z_loss: Weight of the squared log partition function (Chowdhery et al. 2022, section 5; arXiv:2204.02311).

    Returns:
        fp32 [4], in nats, the first differentiable: what is to be minimised; the negative log-likelihoods alone; the
        squared log partition functions; and, where no gradient is wanted, how many labels the highest score names.
    """
    inputs = {name: tensor for name, tensor in tensors.items() if name != "labels"}
    labels, model = tensors["labels"], engine.module
    if getattr(model, "takes_places", False):
        inputs["predicted"] = predicted = labels != IGNORE_INDEX
        labels = labels[predicted].unsqueeze(0)
    if getattr(model, "takes_targets", False):
        sums: torch.Tensor = engine(**inputs, targets=labels, z_loss=z_loss, return_dict=True).logits
        return sums
    return summed_losses(engine(**inputs, return_dict=True).logits, labels, z_loss)


def summed_losses(logits_BSV: torch.Tensor, labels_BS: torch.Tensor, z_loss: float = 0.0) -> torch.Tensor:
    """The four sums of `losses` from scores.

    Args:
        logits_BSV: Scores [B, S, V], any float type.
        labels_BS: True ids, int64 [B, S]; IGNORE_INDEX where nothing is predicted.
        z_loss: Weight of the squared log partition function.
    """
    logits, labels = logits_BSV.flatten(0, 1).float(), labels_BS.flatten()
    likelihood = functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    square = correct = torch.zeros_like(likelihood)
    if z_loss:
        square = torch.logsumexp(logits[labels != IGNORE_INDEX], dim=1).square().sum()
    if not torch.is_grad_enabled():
        correct = ((logits.argmax(-1) == labels) & (labels != IGNORE_INDEX)).sum().float()
    return torch.stack([likelihood + z_loss * square, likelihood, square, correct])
