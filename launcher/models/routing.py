"""The routers of a mixture of experts: found by structure, computed in fp32, with their losses and what they chose.

B: rows   S: positions of a row   T: B x S, tokens of a micro batch   E: experts of a layer   K: experts of a token
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedConfig, PreTrainedModel

from launcher.config.model import ModelConfig
from launcher.errors import ModelError

FAMILY_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")
"""Names under which families keep the weight of the load-balancing loss (all but JetMoE the first)."""


def find_routers(model: nn.Module) -> dict[str, int]:
    """The routers of a model and how many experts each chooses from; empty for a dense model.

    A router stands beside the experts of its layer, which are a list of modules or weights stacked [E, …], and owns one
    matrix of a row for each of them. Of transformers 5.23's mixtures (57 whose default configurations it can build)
    three are not seen, whose routers also score what is no expert (LongCat's zero experts, Inkling's shared ones,
    Zaya's skip): no rank waits for another, since their experts are stacked in one module that none passes by, but they
    tell no load.

    Args:
        model: Whole or partitioned.
    """
    found = {}
    for block_name, block in model.named_modules():
        children = dict(block.named_children())
        for num_experts in {_num_experts(child) for child in children.values()} - {None}:
            for name, child in children.items():
                if num_experts is not None and _is_router(child, num_experts):
                    found[f"{block_name}.{name}".lstrip(".")] = num_experts
    return found


def routed_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules in which a router and its experts stand side by side, in the order of the model's modules."""
    return [model.get_submodule(name.rpartition(".")[0]) for name in find_routers(model)]


def _num_experts(module: nn.Module) -> int | None:
    """How many experts a module holds; None if it holds none."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        inside = [child for child in module.children() if any(True for _ in child.parameters())]
        alike = len(inside) > 1 and len({type(child) for child in inside}) == 1
        # A list of layers holds lists of experts: an expert is one small network.
        return len(inside) if alike and all(_depth(child) <= 1 for child in inside) else None
    if isinstance(module, _ConvNd):  # its weight has three dimensions as well
        return None
    stacked = {_shape(weight)[0] for weight in module.parameters(recurse=False) if len(_shape(weight)) == 3}
    return stacked.pop() if len(stacked) == 1 else None


def _depth(module: nn.Module) -> int:
    return max((1 + _depth(child) for child in module.children()), default=0)


def _is_router(module: nn.Module, num_experts: int) -> bool:
    matrices = [_shape(weight) for weight in module.parameters() if len(_shape(weight)) > 1]
    large = [shape for shape in matrices if shape[0] > 1]  # Ernie keeps a bias of each expert as [1, E]
    return len(large) == 1 and len(large[0]) == 2 and large[0][0] == num_experts


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def watch_routers(model: PreTrainedModel, settings: ModelConfig) -> None:
    """Compute a model's routers in fp32, and let `model.routing` tell of every training pass what they chose.

    A model without routers stays as it is, and has no `routing`.

    Args:
        model: Whole or partitioned, before DeepSpeed has it.
        settings: For `router_aux_loss` and `router_z_loss`.

    Raises:
        ModelError: A weight is given for a model without routers.
    """
    routers = find_routers(model)
    if not routers:
        for field in ("router_aux_loss", "router_z_loss"):
            if getattr(settings, field):
                raise ModelError(f"{model.config.model_type} has no router", f"model.{field}", "delete it")
        return
    given = settings.router_aux_loss
    routing = Routing(
        routers,
        top_k=int(getattr(model.config, "num_experts_per_tok", None) or 1),
        aux_weight=family_weight(model.config) if given is None else given,
        z_weight=settings.router_z_loss,
        in_decoder=_decoder_routers(model, routers),
    )
    for name, num_experts in routers.items():
        router = model.get_submodule(name)
        compute_in_fp32(router, num_experts)
        router.register_forward_hook(routing.recorder(name))
    # First of all: another hook takes the documents' numbers out of the call.
    model.register_forward_pre_hook(routing.enter, prepend=True, with_kwargs=True)
    model.register_forward_hook(routing.leave, always_call=True)
    model.routing = routing


def family_weight(config: PreTrainedConfig) -> float:
    """The weight of the load-balancing loss that a family's configuration names; 0 if it names none."""
    return next((float(getattr(config, name)) for name in FAMILY_WEIGHTS if getattr(config, name, None)), 0.0)


def load_balancing(logits_TE: torch.Tensor, counts_E: torch.Tensor, mask_T: torch.Tensor) -> torch.Tensor:
    """E times the product of each expert's share of the tokens and its mean probability, summed over the experts.

    As `load_balancing_loss_func` of transformers counts it: every one of a token's K choices, so that it is K where the
    load is equal. The counts carry no gradient; the probabilities do.

    Args:
        logits_TE: The router's scores, fp32.
        counts_E: How many tokens went to each expert.
        mask_T: 1 for a token, 0 for padding, fp32.

    Source: Fedus et al. 2021, equation 4 (arXiv:2101.03961).
    """
    num_tokens = mask_T.sum().clamp(min=1.0)
    mean_E = (functional.softmax(logits_TE, dim=-1) * mask_T[:, None]).sum(dim=0) / num_tokens
    return logits_TE.shape[1] * (counts_E / num_tokens * mean_E).sum()


def router_z(logits_TE: torch.Tensor, mask_T: torch.Tensor) -> torch.Tensor:
    """Mean squared log partition function of a router's scores: keeps them small.

    Args:
        logits_TE: The router's scores, fp32.
        mask_T: 1 for a token, 0 for padding, fp32.

    Source: Zoph et al. 2022, equation 5 (arXiv:2202.08906).
    """
    return (torch.logsumexp(logits_TE, dim=-1).square() * mask_T).sum() / mask_T.sum().clamp(min=1.0)


@dataclass(frozen=True, slots=True)
class _Choice:
    """What one router gave out in one pass."""

    logits_TE: torch.Tensor
    chosen_TK: torch.Tensor


class Routing:
    """What the routers of a model chose in its last training pass, and how the load has been since it was last asked.

    Args:
        routers: By name in the model, the number of experts.
        top_k: Experts of a token, where the router itself does not tell which.
        aux_weight: Weight of the load-balancing loss.
        z_weight: Weight of the router z-loss.
        in_decoder: Routers that see the tokens of an encoder-decoder's decoder.
    """

    def __init__(
        self,
        routers: Mapping[str, int],
        *,
        top_k: int,
        aux_weight: float,
        z_weight: float,
        in_decoder: frozenset[str] = frozenset(),
    ) -> None:
        self.routers = dict(routers)
        self.weights = (aux_weight, z_weight)
        self._top_k = top_k
        self._in_decoder = in_decoder
        self._is_watching = False
        self._device = torch.device("cpu")
        self._choices: dict[str, _Choice] = {}
        self._masks: dict[bool, torch.Tensor | None] = {}
        self._load: dict[str, torch.Tensor] = {}

    def enter(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """A forward call begins; only one that trains is watched."""
        self._is_watching = model.training and torch.is_grad_enabled()
        if self._is_watching:
            self._choices.clear()
            self._device = model.device
            self._masks = {is_decoder: _mask(kwargs, "decoder_" if is_decoder else "") for is_decoder in (False, True)}

    def leave(self, model: Any, args: Any, output: Any) -> None:
        """It has ended: what runs from now on repeats it for activation checkpointing."""
        self._is_watching = False

    def recorder(self, name: str) -> Any:
        """The forward hook of a router. It only keeps what it sees: an operation on it inside of a checkpointed layer
        would be missing when the layer is repeated.
        """

        def record(router: Any, args: Any, output: Any) -> None:
            if self._is_watching:
                logits_TE = _logits(output, self.routers[name]).flatten(0, -2)
                self._choices[name] = _Choice(logits_TE, self._chosen(output, logits_TE))

        return record

    def _chosen(self, output: Any, logits_TE: torch.Tensor) -> torch.Tensor:
        last = output[-1] if isinstance(output, tuple) else output
        if not last.is_floating_point():
            chosen_TK: torch.Tensor = last.flatten(0, -2)
            return chosen_TK
        return logits_TE.detach().topk(self._top_k, dim=-1).indices

    def losses(self) -> torch.Tensor:
        """The losses of the last training pass, means over its layers; to be asked once a pass.

        Returns:
            fp32 [3], the first differentiable: what is to be minimised beside the loss; the load-balancing loss; and
            the z-loss, both before their weights.
        """
        aux_weight, z_weight = self.weights
        sums: list[list[torch.Tensor]] = []
        for name, choice in self._choices.items():
            logits_TE = choice.logits_TE.float()
            mask_T = self._masks[name in self._in_decoder]
            mask_T = logits_TE.new_ones(len(logits_TE)) if mask_T is None else mask_T
            with torch.no_grad():
                counts_E = logits_TE.new_zeros(logits_TE.shape[1])
                weights_TK = mask_T[:, None].expand_as(choice.chosen_TK)
                counts_E.scatter_add_(0, choice.chosen_TK.flatten(), weights_TK.flatten())
                self._load[name] = self._load.get(name, 0) + counts_E.double()
            aux = load_balancing(logits_TE if aux_weight else logits_TE.detach(), counts_E, mask_T)
            z = router_z(logits_TE if z_weight else logits_TE.detach(), mask_T)
            sums.append([aux_weight * aux + z_weight * z, aux.detach(), z.detach()])
        self._choices.clear()
        if not sums:  # a family may skip layers at random, all of them as well
            return torch.zeros(3, device=self._device)
        return torch.stack([torch.stack(column).mean() for column in zip(*sums, strict=True)])

    def take_load(self) -> dict[str, torch.Tensor]:
        """By router, how many tokens each expert got since this was last asked, float64 [E], padding excluded."""
        load, self._load = self._load, {}
        return load


def _mask(kwargs: Mapping[str, Any], side: str) -> torch.Tensor | None:
    """1 for a token, 0 for padding, fp32 [T]; None where all are tokens."""
    segments_BS, attention_BS = kwargs.get(f"{side}segment_ids"), kwargs.get(f"{side}attention_mask")
    if segments_BS is not None:
        return (segments_BS.flatten() >= 0).float()  # type: ignore[no-any-return]
    if attention_BS is not None and attention_BS.ndim == 2:
        return (attention_BS.flatten() > 0).float()  # type: ignore[no-any-return]
    return None


def _logits(output: Any, num_experts: int) -> torch.Tensor:
    """The scores among what a router returns.

    Families return (scores, weights of the chosen, numbers of the chosen), or put the scores last. Weights of the
    chosen have the shape of scores where every expert is chosen, or where those of the others are 0.

    Raises:
        ModelError: There are none.
    """
    if isinstance(output, torch.Tensor):
        return output
    like_scores: list[torch.Tensor] = [value for value in output if _is_like_scores(value, num_experts)]
    if not like_scores:
        raise ModelError(f"a router does not tell its scores of {num_experts} experts", "model.family", "use another")
    return like_scores[-1 if output[-1].is_floating_point() else 0]


def _is_like_scores(value: Any, num_experts: int) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[-1] == num_experts


def compute_in_fp32(router: nn.Module, num_experts: int) -> None:
    """Let a router compute in fp32 whatever its weights and inputs are in, under autocast as well.

    Rounded to bf16's eight bits, scores of large experts tie and probabilities lose their tail (Fedus et al. 2021,
    section 2.4: selective precision). Only the scores leave it in fp32; the weights of the chosen experts get back the
    type of the hidden states, as the experts expect.
    """
    inner = router.forward

    def forward(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False), weights_in(self, torch.float32):
            output = inner(hidden.float(), *args, **kwargs)
        if isinstance(output, torch.Tensor):
            return output
        logits = _logits(output, num_experts)
        return tuple(
            value.to(hidden.dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value is not logits
            else value
            for value in output
        )

    router.forward = types.MethodType(forward, router)


@contextmanager
def weights_in(owner: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Put copies of another type before a module's weights for a while: an attribute of its own hides a parameter.

    Gradients flow through the copies. (`torch.func.functional_call` would run the hooks of DeepSpeed again.)
    """
    hidden = [
        (module, name)
        for module in owner.modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.is_floating_point() and weight.dtype != dtype
    ]
    for module, name in hidden:
        module.__dict__[name] = getattr(module, name).to(dtype)
    try:
        yield
    finally:
        for module, name in hidden:
            del module.__dict__[name]


def _decoder_routers(model: PreTrainedModel, routers: Mapping[str, int]) -> frozenset[str]:
    if not model.config.is_encoder_decoder:
        return frozenset()
    inside = set(model.get_decoder().modules())
    return frozenset(name for name in routers if model.get_submodule(name) in inside)
