"""Cross-entropy as sums over predicted tokens, in fp32 whatever the model computes in.

B: rows of a batch   S: positions of a row   V: vocabulary
"""

from __future__ import annotations

import inspect
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
        fp32 [6], in nats, the first and the fifth differentiable: what is to be minimised; the negative
        log-likelihoods alone; the squared log partition functions; and, where no gradient is wanted, how many labels
        the highest score names. Then of `pair_labels`, int64 [B], the negative log-likelihoods and how many of them the
        highest score names: zeros where there are none.
    """
    inputs: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name not in ("labels", "pair_labels")}
    labels, model = tensors["labels"], engine.module
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False  # a decoder otherwise copies all keys and values aside, for a text that goes on
    if getattr(model, "takes_places", False):
        inputs["predicted"] = predicted = labels != IGNORE_INDEX
        labels = labels[predicted].unsqueeze(0)
    scores, pair_scores = getattr(model, "score_names", ("logits", None))
    if getattr(model, "takes_targets", False):
        inputs |= {"targets": labels, "z_loss": z_loss}
    output = engine(**inputs, return_dict=True)
    sums: torch.Tensor = output[scores]
    if not getattr(model, "takes_targets", False):
        sums = summed_losses(sums, labels, z_loss)
    if pair_scores is None:
        return torch.cat([sums, sums.new_zeros(2)])
    return torch.cat([sums, summed_pair_losses(output[pair_scores], tensors["pair_labels"])])


def summed_pair_losses(scores_B2: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """The negative log-likelihoods of the pairs' labels and how many the highest score names, fp32 [2].

    Args:
        scores_B2: Of each pair as it was written and of a changed one, any float type.
        labels_B: int64 [B]; IGNORE_INDEX where there is no telling.
    """
    likelihood = functional.cross_entropy(scores_B2.float(), labels_B, ignore_index=IGNORE_INDEX, reduction="sum")
    return torch.stack([likelihood, (scores_B2.argmax(-1) == labels_B).sum().float()])


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
