from __future__ import annotations

import pytest

from launcher.plan.flops import flops_per_token, peak_flops


def test_flops_are_those_of_palms_appendix() -> None:
    # PaLM 540B, appendix B: 118 layers, 48 heads of 256, sequence 2048.
    assert flops_per_token(540_350_000_000, 118, 48 * 256, 2048) == pytest.approx(
        6 * 540.35e9 + 12 * 118 * 12288 * 2048
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("", None),
        ("Tesla T4", 65e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA A10G", None),
    ],
)
def test_devices_are_known_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
