"""Routers are found, compute in fp32, and their losses are those of the papers and of transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from families import FAMILIES, NUMBERS, ONLY_EAGER
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from launcher.config.model import ModelConfig
from launcher.config.objectives import Head
from launcher.engine.loss import losses
from launcher.engine.routing import router_losses
from launcher.errors import ModelError
from launcher.models.build import build_model
from launcher.models.configuration import build_config
from launcher.models.routing import find_routers, watch_routers

MIXTURES = {
    "mixtral": ({"num_local_experts": 4, "head_dim": 16}, 0.001),
    "qwen3_moe": ({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}, 0.001),
    "olmoe": ({"num_experts": 4, "num_experts_per_tok": 2}, 0.01),
}
"""The family's configuration and its own weight of the load-balancing loss."""
E, K, B, S = 4, 2, 3, 16


def build(family: str, *, head: Head = "causal", apart: bool = False, **settings: Any) -> Any:
    config = MIXTURES[family][0] if family in MIXTURES else settings.pop("config", {})
    attention = "eager" if family in ONLY_EAGER else "sdpa"
    record = ModelConfig.model_validate(
        {"family": family, "attention": attention, **NUMBERS, "config": config, **settings}
    )
    built = build_config(record, head, tiny.tokenizer_info(), S)
    return build_model(built, record, head, seed=3, documents_apart=apart)


def engine_of(model: Any) -> Any:
    """What `losses` and `router_losses` ask of an engine."""

    class Engine(SimpleNamespace):
        def __call__(self, **inputs: Any) -> Any:
            return model(**inputs)

    return Engine(module=model, device=torch.device("cpu"))


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    ids_BS = torch.randint(15, 96, (B, S), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids_BS, "labels": ids_BS.roll(-1, 1)}


def padded() -> dict[str, torch.Tensor]:
    lengths_B = torch.tensor([S, 9, 4])
    return {**batch(), "attention_mask": (torch.arange(S) < lengths_B[:, None]).long()}


def theirs(model: Any, tensors: dict[str, torch.Tensor]) -> list[float]:
    """What transformers' own function gives, a layer at a time."""
    inputs = {name: tensor for name, tensor in tensors.items() if name != "labels"}
    logits = model(**inputs, output_router_logits=True).router_logits
    return [load_balancing_loss_func((one,), E, K, tensors.get("attention_mask")).item() for one in logits]


@pytest.mark.parametrize(("head", "family", "config"), FAMILIES, ids=lambda v: v if isinstance(v, str) else "")
def test_routers_are_found_in_every_mixture_and_nowhere_else(head: Head, family: str, config: dict[str, Any]) -> None:
    model = build(family, head=head) if family in MIXTURES else build(family, head=head, config=config)
    found = find_routers(model)
    assert found == ({f"model.layers.{layer}.mlp.gate": E for layer in (0, 1)} if family in MIXTURES else {})
    assert hasattr(model, "routing") == bool(found)


OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("gpt_oss", {"num_local_experts": E, "head_dim": 16}, "scores of the chosen alone become weights"),
    ("granitemoe", {"num_local_experts": E, "num_experts_per_tok": K}, "weights of the experts in two modules"),
    ("jetmoe", {"num_local_experts": E, "num_experts_per_tok": K, "kv_channels": 16}, "scores last; a linear layer"),
    ("llama4_text", {"num_local_experts": E, "head_dim": 16}, "scores last, weights of their shape before them"),
    (
        "ernie4_5_moe",
        {"moe_num_experts": E, "moe_k": K, "moe_intermediate_size": 16},
        "a bias [1, E] beside the matrix",
    ),
    ("switch_transformers", {"num_experts": E, "d_kv": 16, "d_ff": 48}, "a list of experts, in an encoder-decoder"),
]
"""Families with routers of another make, their experts, and what is different."""


@pytest.mark.parametrize(("family", "config", "why"), OTHERS, ids=[family for family, _, _ in OTHERS])
def test_routers_of_another_make_are_found_and_understood(family: str, config: dict[str, Any], why: str) -> None:
    sizes = {name: number for name, number in NUMBERS.items() if name != "intermediate_size" or "d_ff" not in config}
    wanted = {**sizes, "vocab_size": 96, "num_sparse_decoder_layers": 1, "num_sparse_encoder_layers": 1, **config}
    built = CONFIG_MAPPING[family](num_key_value_heads=2, num_decoder_layers=2, pad_token_id=0, **wanted)
    is_two_sided = built.is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if is_two_sided else AutoModelForCausalLM).from_config(built).bfloat16().train()
    watch_routers(model, ModelConfig(family=family, router_aux_loss=0.1, router_z_loss=0.1))
    assert find_routers(model), why
    tensors = batch()
    if is_two_sided:
        tensors["decoder_input_ids"] = tensors["input_ids"]
    losses(engine_of(model), tensors)
    weighted, aux, _ = router_losses(engine_of(model))
    weighted.backward()
    grads = [
        model.get_submodule(name).get_parameter(n).grad for name in model.routing.routers for n in _matrix(model, name)
    ]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads), why
    chosen = 1 if family in ("llama4_text", "switch_transformers") else built.num_experts_per_tok
    assert aux.item() == pytest.approx(chosen, rel=0.2 if chosen > 1 else 1.0), "about an equal load"
    assert {int(counts_E.sum()) for counts_E in model.routing.take_load().values()} == {chosen * B * S}


def _matrix(model: Any, router: str) -> list[str]:
    """The name of a router's matrix inside of it."""
    return [name for name, weight in model.get_submodule(router).named_parameters() if weight.shape[0] == E]


def test_a_convolution_beside_a_matrix_is_no_mixture() -> None:
    block = nn.ModuleDict({"conv": nn.Conv1d(8, 8, 3, groups=8), "projection": nn.Linear(4, 8)})
    assert find_routers(nn.ModuleDict({"block": block})) == {}
    experts = nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(4, 4) for _ in range(8)), "gate": nn.Linear(4, 8)})
    assert find_routers(nn.ModuleDict({"block": experts})) == {"block.gate": 8}


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("tensors", [batch(), padded()], ids=["whole", "padded"])
def test_the_load_balancing_loss_is_that_of_transformers(family: str, tensors: dict[str, torch.Tensor]) -> None:
    model = build(family)
    losses(engine_of(model), tensors)
    weighted, aux, z = router_losses(engine_of(model)).tolist()
    of_layers = theirs(model, tensors)
    assert aux == pytest.approx(sum(of_layers) / len(of_layers), abs=1e-6)
    assert weighted == pytest.approx(MIXTURES[family][1] * aux), "the family's own weight"
    assert z > 0


def test_one_layer_has_the_whole_loss_of_transformers() -> None:
    model = build("qwen3_moe", num_hidden_layers=1)
    tensors = batch()
    losses(engine_of(model), tensors)
    own = model(**tensors, output_router_logits=True).aux_loss.item()
    losses(engine_of(model), tensors)
    assert router_losses(engine_of(model))[1].item() == pytest.approx(own, abs=1e-6)


def test_the_z_loss_is_the_mean_squared_log_partition_function_of_the_tokens() -> None:
    model, tensors = build("mixtral", router_z_loss=0.5, router_aux_loss=0.0), padded()
    losses(engine_of(model), tensors)
    weighted, _, z = router_losses(engine_of(model)).tolist()
    inputs = {name: tensor for name, tensor in tensors.items() if name != "labels"}
    logits = model(**inputs, output_router_logits=True).router_logits
    mask = tensors["attention_mask"].flatten().bool()
    expected = torch.stack([one[mask].logsumexp(-1).square().mean() for one in logits]).mean().item()
    assert z == pytest.approx(expected, rel=1e-5)
    assert weighted == pytest.approx(0.5 * expected, rel=1e-5)


def test_padding_counts_for_nothing_however_it_is_told() -> None:
    model = build("olmoe", apart=True)
    told = {}
    for name, tensors in (("attention_mask", padded()), ("segment_ids", padded())):
        mask_BS = tensors.pop("attention_mask")
        tensors[name] = mask_BS if name == "attention_mask" else mask_BS - 1
        losses(engine_of(model), tensors)
        told[name] = router_losses(engine_of(model))
        load = model.routing.take_load()
        assert all(counts_E.sum() == K * (S + 9 + 4) for counts_E in load.values())
    torch.testing.assert_close(told["attention_mask"], told["segment_ids"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"chunked_loss": "on"}, {"activation_checkpointing": True}], ids=str)
def test_gradients_of_the_router_losses_flow_whatever_else_the_model_does(settings: dict[str, Any]) -> None:
    weights = {"router_aux_loss": 0.3, "router_z_loss": 0.1}
    plain, model = build("qwen3_moe", **weights), build("qwen3_moe", **weights, **settings)
    grads = []
    for one, seeds in ((plain, (0,)), (model, (1, 0))):  # a pass before it leaves nothing behind
        for seed in seeds:
            one.zero_grad()
            sums = losses(engine_of(one), batch(seed))
            router = router_losses(engine_of(one))
            (sums[0] / (B * S) + router[0]).backward()
            load = one.routing.take_load()
        assert all(counts_E.sum() == K * B * S for counts_E in load.values()), "each token once, recomputed or not"
        grads.append({name: parameter.grad.clone() for name, parameter in one.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}")
    without = build("qwen3_moe", router_aux_loss=0.0)
    (losses(engine_of(without), batch())[0] / (B * S) + router_losses(engine_of(without))[0]).backward()
    gate = "model.layers.0.mlp.gate.weight"
    assert (grads[1][gate] - without.get_parameter(gate).grad).abs().max() > 1e-4


def test_the_gradient_is_that_of_transformers_own_loss() -> None:
    model = build("mixtral", router_aux_loss=1.0, num_hidden_layers=1)
    losses(engine_of(model), batch())
    router_losses(engine_of(model))[0].backward()
    mine = model.get_parameter("model.layers.0.mlp.gate.weight").grad.clone()
    model.zero_grad()
    model(**batch(), output_router_logits=True).aux_loss.backward()
    torch.testing.assert_close(mine, model.get_parameter("model.layers.0.mlp.gate.weight").grad)


def test_a_model_that_is_asked_and_not_trained_is_not_watched() -> None:
    model = build("mixtral")
    losses(engine_of(model), batch())
    router_losses(engine_of(model))
    before = model.routing.take_load()
    model.eval()
    with torch.no_grad():
        losses(engine_of(model), batch())
    model.train()
    assert before
    assert not model.routing.take_load()


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("precision", ["bf16", "bf16_autocast"])
def test_the_router_computes_in_fp32_whatever_the_precision(family: str, precision: str) -> None:
    model = build(family)
    if precision == "bf16":
        model.bfloat16()
    seen: list[tuple[Any, ...]] = []
    gate = model.model.layers[0].mlp.gate
    gate.register_forward_hook(lambda router, args, output: seen.append((args[0].detach(), *output)))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "bf16"):
        sums = losses(engine_of(model), batch())
        (sums[0] + router_losses(engine_of(model))[0]).backward()
    hidden, logits, weights, _ = seen[0]
    exact = hidden.float().reshape(-1, hidden.shape[-1]) @ gate.weight.detach().float().T
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.detach(), exact, rtol=1e-6, atol=1e-7)
    assert weights.dtype == hidden.dtype
    assert gate.weight.grad is not None
    assert gate.weight.grad.dtype == gate.weight.dtype
    assert "weight" not in vars(gate), "the copy is gone"


@pytest.mark.parametrize("field", ["router_aux_loss", "router_z_loss"])
def test_a_dense_model_has_no_router_to_weigh(field: str) -> None:
    with pytest.raises(ModelError) as caught:
        build("llama", **{field: 0.1})
    assert str(caught.value).split("\n") == [
        "ModelError: llama has no router",
        f"  where: model.{field}",
        "  fix:   delete it",
    ]


def test_a_dense_model_adds_nothing() -> None:
    model = build("llama")
    assert router_losses(engine_of(model)).tolist() == [0.0, 0.0, 0.0]
