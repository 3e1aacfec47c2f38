"""Floating-point operations of training, and what devices can do at most."""

from __future__ import annotations

# Dense bf16 tensor-core peaks, FLOP/s, from NVIDIA's data sheets (without sparsity). Matched against the device's name.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "H800": 989e12,
    "L40S": 362e12,
    "A10": 125e12,
    "T4": 65e12,  # fp16: it has no bf16
    "V100": 125e12,  # fp16: it has no bf16
    "RTX 4090": 165e12,
}


def flops_per_token(num_parameters: float, num_layers: int, hidden_size: int, seq_len: int) -> float:
    """Operations of one forward and backward pass, per token.

    Args:
        num_parameters: Weights that every token passes through, embeddings that are only looked up excluded.
        num_layers: Layers.
        hidden_size: Width of attention (heads × head size).
        seq_len: Tokens of a sequence.

    Source: Chowdhery et al. 2022 (PaLM), appendix B: 6 N + 12 L H S; nothing is taken off for a causal mask.
    """
    return 6.0 * num_parameters + 12.0 * num_layers * hidden_size * seq_len


def peak_flops(device_name: str) -> float | None:
    """Peak bf16 FLOP/s of a device by its name, or None where it is not known (every CPU)."""
    words = set(device_name.replace("-", " ").split())  # whole words: an RTX A1000 is no A100
    for name, peak in PEAK_FLOPS.items():
        if words.issuperset(name.split()):
            return peak
    return None
