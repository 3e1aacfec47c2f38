"""Cross-entropy as a sum over predicted tokens, in fp32 whatever the model computes in.

B: rows of a batch   S: positions of a row   V: vocabulary
"""

from __future__ import annotations

import torch
from torch.nn import functional

IGNORE_INDEX = -100


def summed_loss(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """The sum of the negative log-likelihoods of the labels.

    A sum, because the mean that trains a model is over all predicted tokens of the global batch: a mean of means
    would weigh tokens by how the batch happens to be cut, and change with the number of ranks.

    Args:
        logits_BSV: Scores [B, S, V], any float type.
        labels_BS: True ids, int64 [B, S]; IGNORE_INDEX where nothing is predicted.

    Returns:
        fp32 scalar, in nats.
    """
    logits = logits_BSV.flatten(0, 1).float()
    return functional.cross_entropy(logits, labels_BS.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def count_correct(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """How many labels the highest score names; int64 scalar."""
    return ((logits_BSV.argmax(-1) == labels_BS) & (labels_BS != IGNORE_INDEX)).sum()
