"""A block of experts computed in each of transformers' ways: grouped matmul, the default here, against the others.

    python -m benchmarks.experts [--shape 128x448 512x1792] [--tokens 64 512 2048] [--num-experts 8] [--bf16] [--json]

The block is Mixtral's, each token to two experts, drawn weights, forward and backward with the gradients of all weights
made anew. A shape is the block's width and an expert's. `eager` computes one expert after the other, and its backward
writes the gradient of all experts' weights once for each: the fewer the tokens, the more of the time that is.
`batched_mm` copies an expert's weights for every token it gets, and is left out where that takes more than a gigabyte.
"""

from __future__ import annotations

import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from benchmarks.rounds import Value, ratio
from benchmarks.support import Call, Ratio, parser, show

DEFAULT = "grouped_mm"
TOP_K = 2
COPIED_BYTES = 2**30


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--shape", nargs="+", default=["128x448", "512x1792"], metavar="HxF", help="widths")
    made.add_argument("--tokens", type=int, nargs="+", default=[64, 512, 2048], metavar="N", help="of a batch")
    made.add_argument("--num-experts", type=int, default=8, metavar="E", help="of which a token goes to two")
    made.add_argument("--bf16", action="store_true", help="weights and states in bf16, not fp32")
    options = made.parse_args()
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    results: list[Ratio | Value] = []
    for shape in options.shape:
        width, inner = (int(number) for number in shape.split("x"))
        block = made_block(width, inner, options.num_experts, dtype)
        for tokens in options.tokens:
            results += compare(f"{shape}, {tokens} tokens", block, tokens, options.rounds)
    settings = {"experts": options.num_experts, "top_k": TOP_K, "precision": str(dtype).removeprefix("torch.")}
    settings["threads"] = torch.get_num_threads()
    show("experts", results, as_json=options.json, packages=("torch", "transformers"), settings=settings)


def made_block(width: int, inner: int, num_experts: int, dtype: torch.dtype) -> MixtralSparseMoeBlock:
    """Router and experts with drawn weights."""
    config = MixtralConfig(
        hidden_size=width, intermediate_size=inner, num_local_experts=num_experts, num_experts_per_tok=TOP_K
    )
    block = MixtralSparseMoeBlock(config).to(dtype)
    torch.manual_seed(0)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return block


def compare(name: str, block: MixtralSparseMoeBlock, tokens: int, rounds: int) -> list[Ratio | Value]:
    """The default against each other way, on the same states, and how far their gradients are apart."""
    weights = block.experts.gate_up_proj
    generator = torch.Generator().manual_seed(1)
    width = weights.shape[2]
    states = torch.randn(1, tokens, width, generator=generator).to(weights.dtype)
    ways = ["eager"]
    copied = tokens * TOP_K * (weights[0].numel() + block.experts.down_proj[0].numel()) * weights.element_size()
    if copied <= COPIED_BYTES:
        ways.append("batched_mm")
    results: list[Ratio | Value] = []
    ours = way_of(block, DEFAULT, states)
    for way in ways:
        other = way_of(block, way, states)
        results.append(ratio(name, ours, way, other, rounds))
        expected, got = gradient(block, ours), gradient(block, other)
        apart = float((expected - got).norm() / expected.norm())
        results.append(Value(f"{name}: gradients of {DEFAULT} and {way} apart, relative", apart, ""))
    return results


def way_of(block: MixtralSparseMoeBlock, way: str, states: torch.Tensor) -> Call:
    """A pass forward and backward with the experts computed in one way."""

    def call() -> None:
        block.experts.config._experts_implementation = way
        block.zero_grad(set_to_none=True)
        block(states).float().square().mean().backward()

    return call


def gradient(block: MixtralSparseMoeBlock, call: Call) -> torch.Tensor:
    """Of all experts' first weights, fp32."""
    call()
    grad = block.experts.gate_up_proj.grad
    assert grad is not None
    copy: torch.Tensor = grad.float().clone()
    return copy


if __name__ == "__main__":
    main()
