"""The sums that train a model."""

from __future__ import annotations

import pytest
import torch

from launcher.engine.loss import IGNORE_INDEX, summed_pair_losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_without_a_label_count_for_nothing_and_sums_are_fp32(dtype: torch.dtype) -> None:
    scores = torch.tensor([[2.0, -1.0], [0.5, 1.5], [3.0, 0.0], [0.0, 4.0]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([0, 0, IGNORE_INDEX, 1])
    likelihood, right = summed_pair_losses(scores, labels)
    assert likelihood.dtype == torch.float32
    told = [0, 1, 3]
    mean = torch.nn.functional.cross_entropy(scores.float()[told], labels[told])
    assert likelihood.item() == pytest.approx(3 * mean.item(), rel=1e-6)
    assert right == 2
    likelihood.backward()
    assert scores.grad is not None
    assert scores.grad[2].abs().sum() == 0
    nothing = summed_pair_losses(scores, torch.full((4,), IGNORE_INDEX))
    assert nothing.tolist() == [0.0, 0.0]
