"""Experts shared among ranks by DeepSpeed's AutoEP: what it must be told, and kept from getting wrong in silence.

When the engine starts, AutoEP replaces each routed block by a layer that holds this rank's part of the experts, sends
tokens to the ranks that hold theirs, and takes the results back. Every rank still trains on samples of its own.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.utils import output_capturing

from launcher.config.model import ModelConfig
from launcher.errors import ModelError
from launcher.models.routing import compute_in_fp32, find_routers

FAMILIES = ("mixtral", "qwen3_moe")
"""Tried here. DeepSpeed 0.19.8 has presets for more, whose parameters the checkpoint does not know by name."""


def prepare_expert_parallel(model: PreTrainedModel, record: ModelConfig) -> None:
    """See that AutoEP can share the experts of a model among ranks, and would compute what the model computes.

    Raises:
        ModelError: It cannot, or would compute something else.
    """
    family, where = model.config.model_type, "model.expert_parallel"
    sizes = set(find_routers(model).values())
    if not sizes or family not in FAMILIES:
        raise ModelError(
            f"the experts of {family} cannot be shared among ranks", where, f"use one of: {', '.join(FAMILIES)}"
        )
    num_experts = min(sizes)
    if num_experts % record.expert_parallel:
        fitting = [str(n) for n in range(1, num_experts + 1) if num_experts % n == 0]
        raise ModelError(
            f"{num_experts} experts cannot be shared among {record.expert_parallel} ranks",
            where,
            f"use one of: {', '.join(fitting)}",
        )
    if record.experts != "auto":
        raise ModelError(
            "experts shared among ranks are computed by DeepSpeed's own grouped matmul",
            "model.experts",
            "use model.experts=auto, or model.expert_parallel=1",
        )
    # AutoEP 0.19.8 takes the first two for granted and leaves the noise out.
    config = model.config
    jitter = getattr(config, "router_jitter_noise", 0.0)
    if not getattr(config, "norm_topk_prob", True) or config.hidden_act != "silu" or jitter:
        raise ModelError(
            "shared experts weigh with norm_topk_prob=true, compute with hidden_act=silu, and route without noise only",
            where,
            "use model.expert_parallel=1",
        )
    model.expert_parallel = record.expert_parallel
    _bridge_output_registry()


def watch_shared_experts(model: Any) -> None:
    """After the engine has started: the routers of AutoEP's layers compute in fp32 and are watched as the model's were.

    Args:
        model: The engine's module; where no experts are shared it stays as it is.
    """
    if not hasattr(model, "routing"):
        return
    for name, num_experts in model.routing.routers.items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if is_shared(layer):
            scores = layer.router.gate
            compute_in_fp32(scores, num_experts)
            scores.register_forward_hook(model.routing.recorder(name))


def is_shared(module: Any) -> bool:
    """Whether AutoEP put this layer in."""
    return bool(getattr(module, "_is_autoep_layer", False))


def _bridge_output_registry() -> None:
    """Let transformers' registry of recordable outputs be asked as DeepSpeed 0.19.8 asks it.

    AutoEP calls `registry.get(name of a class, default)`; since transformers 5.23 `get` takes a model and nothing else.
    """
    registry_class = type(output_capturing._CAN_RECORD_REGISTRY)
    if registry_class is dict or getattr(registry_class, "takes_names", False):
        return
    get_by_model = registry_class.get

    def get(registry: Any, key: Any, default: Any = None) -> Any:
        return dict.get(registry, key, default) if isinstance(key, str) else get_by_model(registry, key)

    registry_class.get = get
    registry_class.takes_names = True
