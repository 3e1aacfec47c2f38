"""What the ranks of the tests of mixtures of experts do; functions of plain values, run by `ranks.run_ranks`."""

from __future__ import annotations

import json
from typing import Any

import tiny
import torch

NUMBERS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {**NUMBERS, "family": "mixtral", "intermediate_size": 48, "config": {"num_local_experts": 4}},
    "qwen3_moe": {
        **NUMBERS,
        "family": "qwen3_moe",
        "intermediate_size": 64,
        "config": {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "head_dim": 16,
        },
    },
    "olmoe": {
        **NUMBERS,
        "family": "olmoe",
        "intermediate_size": 24,
        "config": {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": False},
    },
}
BF16 = {"bf16": {"enabled": True}}
DENSE = {**NUMBERS, "family": "llama", "intermediate_size": 48}


def build(model: dict[str, Any], device: str = "cpu", ds_config: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A model of 96 tokens and its weights, as a run without DeepSpeed has them; `ds_config` tells the precision."""
    from launcher.config.model import ModelConfig
    from launcher.models.build import build_model
    from launcher.models.configuration import build_config

    record = ModelConfig.model_validate({**model, **changes})
    config = build_config(record, "causal", tiny.tokenizer_info(), 16)
    return build_model(config, record, "causal", seed=5, ds_config=ds_config, device=device)


def tokens(num_rows: int = 2, seed: int = 0) -> torch.Tensor:
    """Random ids of that vocabulary, int64 [B, 16]."""
    return torch.randint(15, 96, (num_rows, 16), generator=torch.Generator().manual_seed(seed))


def set_apart(model: Any) -> None:
    """Move experts and routers far from each other: a wrong expert shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name or "gate" in name:
                parameter.mul_(10)


def step_of(model: Any, ids_BS: torch.Tensor) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, logits and gradients of one batch."""
    model.zero_grad()
    logits = model(input_ids=ids_BS).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids_BS[:, 1:].flatten())
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    return loss.item(), logits.detach(), grads


def megablocks_against_transformers(model: dict[str, Any]) -> dict[str, float]:
    """Largest differences between a model whose experts MegaBlocks computes and transformers' own, in fp32 on a CPU."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    from launcher.models.moe import megablocks_experts

    torch.set_num_threads(1)
    built, ids = build(model, experts="eager"), tokens()
    set_apart(built)
    names = list(built.state_dict())
    loss, logits, grads = step_of(built, ids)
    ALL_EXPERTS_FUNCTIONS.register("megablocks", megablocks_experts)
    built.set_experts_implementation("megablocks")
    other_loss, other_logits, other_grads = step_of(built, ids)
    assert list(built.state_dict()) == names
    scale = {name: float(grad.abs().max()) for name, grad in grads.items()}
    assert all(scale[name] > 0 for name in scale if "experts" in name or "gate" in name)
    return {
        "loss": abs(other_loss - loss),
        "logits": float((other_logits - logits).abs().max()),
        "gradients": max(float((other_grads[name] - grads[name]).abs().max()) / scale[name] for name in grads),
        **_megablocks_own_layer(built.model.layers[0].mlp),
        **{
            f"bf16 {name}": value
            for name, value in block_differences(built, "cpu", torch.bfloat16, "megablocks").items()
        },
    }


def megablocks_on_a_gpu(model: dict[str, Any]) -> dict[str, float]:
    """Differences in bf16 between a block whose experts MegaBlocks' kernels compute and transformers' own."""
    from launcher.config.model import ModelConfig
    from launcher.models.moe import choose_experts

    built = build(model, experts="eager")
    set_apart(built)
    record = ModelConfig.model_validate({**model, "experts": "megablocks"})
    choose_experts(built, record, device="cuda", half=True, weight_bytes=2)
    return block_differences(built, "cuda", torch.bfloat16, "megablocks")


def block_differences(model: Any, device: str, dtype: torch.dtype, way: str) -> dict[str, float]:
    """Output and gradients of a block, eager and another way, relative to the largest of their tensor.

    Of one block, and not of a model: rounded otherwise, a token of a later layer may go to another expert.
    """
    block = model.to(device, dtype).model.layers[0].mlp
    hidden_BSH = torch.randn(2, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    found = []
    for computed in ("eager", way):
        model.set_experts_implementation(computed)
        block.zero_grad()
        inputs_BSH = hidden_BSH.to(device, dtype).requires_grad_()
        output_BSH = block(inputs_BSH)
        output_BSH.float().square().sum().backward()
        grads = {name: parameter.grad.clone() for name, parameter in block.named_parameters()}
        found.append({"output": output_BSH.detach(), "inputs": inputs_BSH.grad, **grads})
    eager, ours = found
    return {name: float((ours[name] - value).abs().max() / value.abs().max()) for name, value in eager.items()}


def _megablocks_own_layer(block: Any) -> dict[str, float]:
    """The same against MegaBlocks' own layer and router: weights mapped from the block's, gradients mapped back."""
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import dMoE

    from launcher.models.moe import from_megablocks, to_megablocks

    experts = block.experts
    num_experts, hidden, width = experts.down_proj.shape
    normalise = getattr(block.gate, "norm_topk_prob", True)  # Mixtral always does
    layer = dMoE(
        Arguments(
            hidden_size=hidden,
            ffn_hidden_size=width,
            moe_num_experts=num_experts,
            moe_top_k=block.gate.top_k,
            moe_normalize_expert_weights=1 if normalise else None,
            mlp_type="glu",
            mlp_impl="grouped",
            activation_fn=experts.act_fn,
            bias=False,
            fp16=False,
            moe_loss_weight=0.0,
            device=torch.device("cpu"),
        )
    )
    layer.load_state_dict(to_megablocks(block.state_dict()))
    block.load_state_dict(from_megablocks(layer.state_dict()))
    hidden_BSH = torch.randn(2, 16, hidden, generator=torch.Generator().manual_seed(1))
    block.zero_grad()
    ours, theirs = block(hidden_BSH), layer(hidden_BSH)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    grads = from_megablocks({name: parameter.grad for name, parameter in layer.named_parameters()})
    return {
        "their layer": float((ours - theirs).detach().abs().max() / theirs.detach().abs().max()),
        **{
            f"their gradient of {name}": float((grads[name] - parameter.grad).abs().max() / grads[name].abs().max())
            for name, parameter in block.named_parameters()
        },
    }


class OldBlock(torch.nn.Module):
    """A router and a list, a dict or a stack of experts; each token goes to the expert it is given with."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.gate = torch.nn.Linear(8, 4, bias=False)
        self.experts: Any
        if kind == "list":
            self.experts = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(4)])
        elif kind == "dict":
            self.experts = torch.nn.ModuleDict({str(number): torch.nn.Linear(8, 8) for number in range(4)})
        else:
            self.experts = torch.nn.Module()
            self.experts.weight = torch.nn.Parameter(torch.randn(4, 8, 8) / 3)

    def forward(self, x_TH: torch.Tensor, chosen_T: torch.Tensor) -> torch.Tensor:
        weights_TE = self.gate(x_TH).softmax(-1)
        out_TH = torch.zeros_like(x_TH)
        for number in chosen_T.unique().tolist():  # the experts of this rank's tokens, and no other
            rows = chosen_T == number
            if self.kind == "stacked":
                done = x_TH[rows] @ self.experts.weight[number]
            else:
                done = self.experts[number if self.kind == "list" else str(number)](x_TH[rows])
            out_TH[rows] = done * weights_TE[rows, number, None]
        return out_TH


class OldModel(torch.nn.Module):
    """Such a block between two layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.block = OldBlock(kind)
        self.last = torch.nn.Linear(8, 8)

    def forward(self, x_TH: torch.Tensor, chosen_T: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(self.first(x_TH), chosen_T))


def train_apart(kind: str, stage: int) -> dict[str, Any]:
    """Three steps of a block whose experts are others on each rank."""
    import os

    import deepspeed

    from launcher.cluster.rank import find_place
    from launcher.engine.process import gather, join_ranks
    from launcher.models.moe import gather_routed_blocks_whole

    place = find_place(os.environ)
    join_ranks(place, 1)
    torch.manual_seed(0)
    model = OldModel(kind)
    if stage == 3:
        gather_routed_blocks_whole(model)
    ds_config = {
        "train_batch_size": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    x_TH = torch.randn(6, 8, generator=torch.Generator().manual_seed(place.rank))
    chosen_T = torch.tensor([0, 0, 1, 0, 1, 1] if place.rank else [2, 3, 2, 2, 3, 3])
    losses = []
    for _ in range(3):
        loss = (engine(x_TH, chosen_T) - 1).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(gather(torch.tensor([loss.item()], dtype=torch.float64).numpy()).mean()))
    return {"losses": losses, "experts": chosen_T.unique().tolist()}


def train_family(model: dict[str, Any], stage: int) -> dict[str, Any]:
    """Three steps of a family's model, eager experts; each rank reads one token again and again.

    All its positions are alike, so that they go to the same experts, which are others on each rank.
    """
    import os

    from deepspeed.utils import get_z3_leaf_modules

    from launcher.cluster.rank import find_place
    from launcher.config.model import ModelConfig
    from launcher.config.recipe import OptimConfig
    from launcher.engine.process import gather, join_ranks
    from launcher.engine.start import start_engine
    from launcher.models.build import build_model
    from launcher.models.configuration import build_config

    place = find_place(os.environ)
    join_ranks(place, 1)
    record = ModelConfig.model_validate({**model, "experts": "eager"})
    config = build_config(record, "causal", tiny.tokenizer_info(), 16)
    ds_config = {
        "train_batch_size": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
    }
    built = build_model(config, record, "causal", seed=3, ds_config=ds_config)
    engine = start_engine(built, OptimConfig(lr=3e-3), ds_config)
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = 3e-3  # the step loop's part: an engine starts without a rate
    ids_BS = torch.full((1, 16), 90 if place.rank else 20)
    losses, experts = [], []
    for _ in range(3):
        logits_BSV = engine(input_ids=ids_BS).logits
        loss = torch.nn.functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())
        engine.backward(loss)
        engine.module.routing.losses()
        load = engine.module.routing.take_load()
        experts.append([counts_E.nonzero().flatten().tolist() for counts_E in load.values()])
        engine.step()
        losses.append(float(gather(torch.tensor([loss.item()], dtype=torch.float64).numpy()).mean()))
    return {"losses": losses, "experts": experts, "num_leaves": len(get_z3_leaf_modules(engine.module))}


def main() -> None:
    """In an interpreter of its own, started with TRITON_INTERPRET=1: every family's differences as JSON."""
    import megablocks_on_cpu

    megablocks_on_cpu.prepare()
    print(json.dumps({family: megablocks_against_transformers(model) for family, model in FAMILIES.items()}))


if __name__ == "__main__":
    main()
