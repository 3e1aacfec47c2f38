"""MegaBlocks' own Python code on a CPU: plain stand-ins for what it has compiled, and Triton's interpreter.

Stand-ins: `megablocks_ops` (csrc/ of megablocks 0.10.0), `grouped_gemm`, and Triton's autotuner, which would time
kernels on a device. Everything else is the installed megablocks and stk. For an interpreter of its own, started with
TRITON_INTERPRET=1 (read when Triton's own functions are decorated, and torch imports Triton where it finds it).
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch


def prepare() -> None:
    """Make `import megablocks` work here.

    Raises:
        ImportError: megablocks, stk or triton is not installed.
    """
    import stk  # noqa: F401
    import triton

    triton.autotune = _first_configuration
    sys.modules["megablocks_ops"] = _module(
        "megablocks_ops", sort=_sort, histogram=_histogram, inclusive_cumsum=_inclusive_cumsum
    )
    grouped = _module("grouped_gemm", ops=_module("grouped_gemm.ops", gmm=gmm), backend=None)
    sys.modules["grouped_gemm"] = grouped
    import megablocks.layers.dmoe  # noqa: F401


def gmm(a: torch.Tensor, b: torch.Tensor, batch_sizes: torch.Tensor, trans_b: bool = False) -> torch.Tensor:
    """Rows of `a` group by group times the group's matrix of `b`."""
    assert batch_sizes.device.type == "cpu"
    assert batch_sizes.dtype == torch.int64
    groups = a.split(batch_sizes.tolist())
    return torch.cat([rows @ (matrix.T if trans_b else matrix) for rows, matrix in zip(groups, b, strict=True)])


def _sort(x: torch.Tensor, end_bit: int, values: torch.Tensor, order: torch.Tensor) -> None:
    assert int(x.max()) < 2**end_bit, "a radix sort looks at so many bits only"
    result = torch.sort(x, stable=True)
    values.copy_(result.values)
    order.copy_(result.indices)


def _histogram(x: torch.Tensor, num_bins: int) -> torch.Tensor:
    return torch.bincount(x, minlength=num_bins).int()


def _inclusive_cumsum(x: torch.Tensor, dim: int, out: torch.Tensor) -> None:
    out.copy_(torch.cumsum(x, dim))


def _first_configuration(configs: list[Any], key: list[str]) -> Any:
    class Kernel:
        def __init__(self, function: Any) -> None:
            self._function = function

        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **kwargs: self._function[grid](*args, **kwargs, **configs[0].kwargs)

    return Kernel


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    return module
