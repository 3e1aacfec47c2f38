"""The loss of large vocabularies without the scores of every token at once.

32 sequences of 2,048 tokens and a vocabulary of 128,000 make 31 GiB of scores in fp32, and as much again for their
gradient. Here the output layer itself is given the labels: it takes a few hundred tokens at a time, and keeps of each
chunk the loss and the two gradients, so that nothing is computed twice and the largest array is the layer's own weight.

N: predicted tokens   C: tokens of a chunk   H: width   V: vocabulary
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from launcher.errors import ModelError

IGNORE_INDEX = -100
CHUNK_BYTES = 64 << 20
"""Scores held at once (assumption: large enough for matmuls at full speed, small beside any model's activations)."""
WORTH_BYTES = 256 << 20
"""Scores of a micro batch from which `auto` takes chunks (assumption: below it they are a small part of the memory)."""
CHANGES_SCORES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")
"""Fields of configurations whose models change scores behind the output layer."""


def worth_chunking(model: PreTrainedModel, tokens: int) -> bool:
    """Whether the scores of so many tokens are worth avoiding, and this model lets them be avoided."""
    return not _changes_scores(model) and tokens * model.config.vocab_size * 4 >= WORTH_BYTES


def _changes_scores(model: PreTrainedModel) -> bool:
    """Whether something stands behind the output layer: a cap, a scale, or BART's bias."""
    fields = any(getattr(model.config, name, None) for name in CHANGES_SCORES)
    return fields or hasattr(model, "final_logits_bias")


def compute_loss_in_output_layer(model: PreTrainedModel) -> None:
    """Let a model take `targets` (int64, one for each row of scores) and `z_loss` and return losses in place of scores.

    With `targets` the model's `logits` are a vector of four fp32 numbers: what is to be minimised (the sum of the
    negative log-likelihoods and of `z_loss` times the squared log partition functions), the likelihoods' part of it,
    the sum of the squares, and, where no gradient is wanted, how many tokens the highest score names. Without, nothing
    changes.

    Args:
        model: Its output layer must be the last thing that touches the scores.

    Raises:
        ModelError: It has no such layer.
    """
    layer, family = model.get_output_embeddings(), model.config.model_type
    if not isinstance(layer, torch.nn.Linear):
        raise ModelError(f"{family} has no output layer of its own", "model.chunked_loss", "use off")
    changed = ModelError(f"{family} changes its scores behind the output layer", "model.chunked_loss", "use off")
    if _changes_scores(model):
        raise changed
    asked: dict[str, Any] = {}
    scores = layer.forward

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        if not asked:
            plain: torch.Tensor = scores(hidden)
            return plain
        targets = asked["targets"].flatten()
        rows_N = (targets != IGNORE_INDEX).nonzero().squeeze(1)
        hidden_NH = hidden.flatten(0, -2).index_select(0, rows_N)
        result = chunked_loss(hidden_NH, self.weight, self.bias, targets[rows_N], asked["z_loss"])
        asked["result"] = result
        return result

    def enter(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "targets" in kwargs:
            asked.update(targets=kwargs.pop("targets"), z_loss=kwargs.pop("z_loss", 0.0))
        return args, kwargs

    def leave(model: Any, args: Any, output: Any) -> None:
        result, was_asked = asked.get("result"), bool(asked)
        asked.clear()
        if not was_asked or output is None:
            return
        scores = output[getattr(model, "score_names", ("logits",))[0]]
        # The same numbers in memory, not the same tensor: at stage 3 DeepSpeed wraps what a module returns.
        if result is None or scores.data_ptr() != result.data_ptr():
            raise changed

    layer.forward = types.MethodType(forward, layer)  # type: ignore[method-assign]
    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.register_forward_hook(leave, always_call=True)
    model.takes_targets = True


def chunked_loss(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """The four sums of `compute_loss_in_output_layer`, fp32 [4]; the first is differentiable.

    Args:
        hidden_NH: What the output layer reads, any float type.
        weight_VH: Of the output layer.
        bias_V: Of the output layer, if it has one.
        targets_N: True ids, int64.
        z_loss: Weight of the squared log partition function (Chowdhery et al. 2022, section 5; arXiv:2204.02311).
    """
    result: torch.Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, bias_V, targets_N, z_loss, torch.is_grad_enabled()
    )
    return result


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass: the gradient of a loss is known as soon as the loss is, up to a factor."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        z_loss: float,
        wanted: bool,
    ) -> torch.Tensor:
        sums = hidden_NH.new_zeros(4, dtype=torch.float32)
        gradients = [
            torch.zeros_like(t, dtype=torch.float32) if wanted and t is not None else None
            for t in (hidden_NH, weight_VH, bias_V)
        ]
        num_rows = max(1, CHUNK_BYTES // (4 * weight_VH.shape[0]))
        for first in range(0, len(hidden_NH), num_rows):
            here = slice(first, first + num_rows)
            hidden_CH, targets_C = hidden_NH[here], targets_N[here]
            scores_CV = functional.linear(hidden_CH, weight_VH, bias_V).float()
            log_z_C = torch.logsumexp(scores_CV, dim=1)
            loss = (log_z_C - scores_CV.gather(1, targets_C[:, None]).squeeze(1)).sum()
            square = log_z_C.square().sum()
            sums[:3] += torch.stack([loss + z_loss * square, loss, square])
            if not wanted:
                sums[3] += (scores_CV.argmax(1) == targets_C).sum()
            else:
                slope_CV = scores_CV.sub_(log_z_C[:, None]).exp_()
                slope_CV *= (1 + 2 * z_loss * log_z_C)[:, None]
                slope_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= 1
                _add_gradients(gradients, here, slope_CV, hidden_CH, weight_VH)
        ctx.dtypes = [t.dtype if t is not None else None for t in (hidden_NH, weight_VH, bias_V)]
        ctx.gradients = gradients
        return sums

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = slopes[0][0]
        scaled = [
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = []
        return (*scaled, None, None, None)


def _add_gradients(
    gradients: list[torch.Tensor | None],
    here: slice,
    slope_CV: torch.Tensor,
    hidden_CH: torch.Tensor,
    weight_VH: torch.Tensor,
) -> None:
    hidden_NH, gradient_VH, gradient_V = gradients
    narrow_CV = slope_CV.to(hidden_CH.dtype)
    if hidden_NH is not None:
        hidden_NH[here] = narrow_CV @ weight_VH.to(narrow_CV.dtype)
    if gradient_VH is not None:
        gradient_VH += narrow_CV.T @ hidden_CH
    if gradient_V is not None:
        gradient_V += slope_CV.sum(0)
