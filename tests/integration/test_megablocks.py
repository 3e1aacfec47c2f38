"""MegaBlocks computes what transformers computes, on the same parameters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import moe_jobs
import pytest

from launcher.errors import MissingDependencyError

PACKAGES = ("megablocks", "stk", "triton")
# The gate installs them beside the environment, not into it: with Triton there, torch and DeepSpeed act otherwise.
FOLDER = os.environ.get("MEGABLOCKS_FOLDER", "")

# Of the largest of a tensor; bf16 has eight bits, which eager rounds to after every expert and MegaBlocks once.
IN_BF16 = 0.05


@pytest.fixture(scope="module")
def differences() -> dict[str, dict[str, float]]:
    """By family; measured in a process of its own, since Triton's interpreter is chosen before the first import."""
    missing = [name for name in PACKAGES if PathFinder.find_spec(name, [FOLDER, *sys.path]) is None]
    if missing:
        reason = (
            f"needs {', '.join(missing)}: pip install --no-deps --no-build-isolation --target FOLDER "
            "megablocks==0.10.0 stanford-stk==0.7.1 triton, and MEGABLOCKS_FOLDER=FOLDER"
        )
        assert not os.environ.get("REQUIRE_CLUSTER"), reason  # the gate installs them
        pytest.skip(reason)
    support = Path(moe_jobs.__file__).parent
    paths = [str(support), str(support.parents[1]), FOLDER, os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(support / "moe_jobs.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", moe_jobs.FAMILIES)
def test_megablocks_equals_transformers_on_a_cpu(family: str, differences: dict[str, dict[str, float]]) -> None:
    found = differences[family]
    assert found.keys() >= {"loss", "logits", "gradients", "their layer", "their gradient of gate.weight"}
    in_bf16 = {name: value for name, value in found.items() if name.startswith("bf16")}
    assert in_bf16.keys() >= {"bf16 output", "bf16 inputs", "bf16 gate.weight", "bf16 experts.gate_up_proj"}
    assert max(in_bf16.values()) < IN_BF16, found
    assert max(value for name, value in found.items() if name not in in_bf16) < 1e-5, found


def test_a_machine_without_megablocks_is_told_how_to_install_it() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        moe_jobs.build(moe_jobs.FAMILIES["mixtral"], experts="megablocks")
    told = str(caught.value)
    assert "MegaBlocks is not installed" in told or "MegaBlocks needs CUDA" in told
    if "not installed" in told:
        assert "pip install --no-deps --no-build-isolation megablocks==0.10.0" in told
