"""`pretrain check` measures a GPU, and adds up over NCCL."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.gpu


def test_a_gpu_is_measured_and_adds_up() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    from launcher.probe.bench import TorchBench

    bench = TorchBench(0)
    told = bench.compute()
    assert told["device"] == torch.cuda.get_device_name()
    assert told["matmul_flops"] > 1e12
    assert told["copy_bytes_per_s"] > 1e10
    assert 0 < told["free_bytes"] <= told["device_bytes"]
    summed = bench.reduce("127.0.0.1", bench.open_store("127.0.0.1"), 0, 1, 60.0)
    assert (summed["backend"], summed["right"]) == ("nccl", True)
