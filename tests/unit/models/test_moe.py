"""The weights of a block under MegaBlocks' names, and back; what it takes to compute experts its way."""

from __future__ import annotations

import moe_jobs
import pytest
import torch
from torch.nn import functional

from launcher.models.moe import from_megablocks, to_megablocks

E, H, F = 3, 8, 5


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"gate.weight": (E, H), "experts.gate_up_proj": (E, 2 * F, H), "experts.down_proj": (E, H, F)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_names_and_shapes_are_those_of_megablocks() -> None:
    assert {name: tuple(weight.shape) for name, weight in to_megablocks(weights()).items()} == {
        "router.layer.weight": (E, H),
        "experts.mlp.w1": (E * F, H),
        "experts.mlp.v1": (E * F, H),
        "experts.mlp.w2": (E * F, H),
    }


def test_each_way_is_the_inverse_of_the_other() -> None:
    ours = weights()
    theirs = to_megablocks(ours)
    for before, after in ((ours, from_megablocks(theirs)), (theirs, to_megablocks(from_megablocks(theirs)))):
        assert before.keys() == after.keys()
        for name, weight in before.items():
            assert torch.equal(after[name], weight), name


def test_an_expert_computes_the_same_from_either() -> None:
    ours, x_TH = weights(), torch.randn(4, H, generator=torch.Generator().manual_seed(1))
    theirs = {name: weight.view(E, -1, H) for name, weight in to_megablocks(ours).items()}
    for expert in range(E):
        gate_TF, up_TF = functional.linear(x_TH, ours["experts.gate_up_proj"][expert]).chunk(2, dim=-1)
        expected = functional.linear(functional.silu(gate_TF) * up_TF, ours["experts.down_proj"][expert])
        w1, v1, w2 = (theirs[f"experts.mlp.{name}"][expert] for name in ("w1", "v1", "w2"))  # [F, H]
        torch.testing.assert_close((functional.silu(x_TH @ w1.T) * (x_TH @ v1.T)) @ w2, expected)


@pytest.mark.parametrize("family", moe_jobs.FAMILIES)
def test_every_weight_of_a_familys_block_has_its_place(family: str) -> None:
    block = moe_jobs.build(moe_jobs.FAMILIES[family]).model.layers[0].mlp
    state = {name: weight.clone() for name, weight in block.state_dict().items()}
    block.load_state_dict(from_megablocks(to_megablocks(state)))
    assert to_megablocks(state).keys() == to_megablocks(block.state_dict()).keys()
    for name, weight in block.state_dict().items():
        assert torch.equal(weight, state[name])
