"""What DeepSpeed has to compile is known before a run, and whether it can."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.config import compiled_ops
from launcher.config.compiled_ops import STAMP, check_ops, is_ready, missing_packages, needed_ops, stamp_of
from launcher.errors import MissingDependencyError


def offloading(optimizer: str, param: str = "none") -> dict[str, Any]:
    return {"zero_optimization": {"offload_optimizer": {"device": optimizer}, "offload_param": {"device": param}}}


@pytest.mark.parametrize(
    ("config", "host_adam", "ops"),
    [
        ({}, "auto", []),
        (offloading("none"), "cpu_adam", []),
        (offloading("cpu"), "auto", ["cpu_adam"]),
        (offloading("cpu", "cpu"), "torch", []),
        (offloading("nvme"), "auto", ["cpu_adam", "async_io"]),
        (offloading("nvme"), "torch", ["async_io"]),
        (offloading("cpu", "nvme"), "auto", ["cpu_adam", "async_io"]),
    ],
)
def test_a_run_needs_the_operations_of_what_it_offloads(config: Any, host_adam: str, ops: list[str]) -> None:
    assert needed_ops(config, host_adam) == ops


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name in (*compiled_ops.OWN_PLACES, "CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiled_ops, "find_library", lambda name: None)
    monkeypatch.setattr(compiled_ops, "find_spec", lambda name: None)


@pytest.mark.usefixtures("bare_machine")
def test_without_a_compiler_torchs_adamw_takes_the_place_of_cpu_adam_and_says_so() -> None:
    (note,) = check_ops(offloading("cpu"), "auto")
    assert note.startswith("DeepSpeed's CPU Adam cannot be compiled here for want of g++, ninja-build: torch's AdamW")


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    ("config", "host_adam", "message"),
    [
        (offloading("cpu"), "cpu_adam", "DeepSpeed's cpu_adam cannot be compiled here for want of g++, ninja-build"),
        (
            offloading("nvme"),
            "torch",
            "DeepSpeed's async_io cannot be compiled here for want of g++, ninja-build, libaio",
        ),
        (offloading("cpu", "nvme"), "torch", "apt-get install g++ ninja-build libaio-dev, or use offload to cpu"),
    ],
)
def test_what_was_asked_for_by_name_and_cannot_be_had_stops_the_run(config: Any, host_adam: str, message: str) -> None:
    with pytest.raises(MissingDependencyError) as told:
        check_ops(config, host_adam)
    assert message in str(told.value)


@pytest.mark.usefixtures("bare_machine")
def test_a_libaio_that_the_compiler_is_told_of_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDFLAGS", "-L/opt/libaio/lib")
    assert missing_packages("async_io") == ["g++", "ninja-build"]


@pytest.mark.usefixtures("bare_machine")
def test_what_was_compiled_and_loaded_here_before_needs_no_compiler(tmp_path: Path) -> None:
    folder = tmp_path / "cpu_adam"
    folder.mkdir()
    (folder / "cpu_adam.so").write_bytes(b"compiled")
    assert not is_ready("cpu_adam", os.environ), "nobody has loaded it: it may be half a file"
    (folder / STAMP).write_text(json.dumps(stamp_of(folder)))
    assert missing_packages("cpu_adam") == []
    for key, other in (("cpu", 1), ("versions", {"torch": "1.0"}), ("library", [8, 0])):
        (folder / STAMP).write_text(json.dumps({**stamp_of(folder), key: other}))
        assert missing_packages("cpu_adam") == ["g++", "ninja-build"], key
