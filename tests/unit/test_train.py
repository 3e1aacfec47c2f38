"""What the training program does before it imports torch."""

from __future__ import annotations

import errno
import io
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console

from launcher.cluster.signals import Launchers
from launcher.engine import process, watch
from launcher.engine.watchdog import Pulse
from launcher.errors import ShardError, UsageError

BY_A_LAUNCHER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "2"}


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        (BY_A_LAUNCHER, Launchers),  # deepspeed's leave their ranks behind
        ({}, type(None)),  # started by hand: nohup, and the shell is logged out of
    ],
)
def test_a_rank_ends_with_its_launcher_and_not_with_a_shell(
    variables: dict[str, str], kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def look(*arguments: Any) -> None:
        seen.append(arguments[-1])
        raise UsageError("seen")

    monkeypatch.setattr(watch, "Watch", look)
    monkeypatch.setattr(os, "environ", {**variables, "PATH": os.environ["PATH"]})
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("clm", tmp_path, tmp_path))
    program = runpy.run_module("launcher.train", run_name="launcher_train")
    assert program["main"](["--ds_config", "zero1", "--recipe", str(recipe)]) == 2
    assert [type(launchers) for launchers in seen] == [kind]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_file_system_that_is_gone_asks_for_another_start(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "/runs/x")

    monkeypatch.setattr(watch, "Watch", gone)
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("clm", tmp_path, tmp_path))
    program = runpy.run_module("launcher.train", run_name="launcher_train")
    assert program["main"](["--ds_config", "zero1", "--recipe", str(recipe)]) == 75
    told = capsys.readouterr().err
    assert told.startswith(f"RequeueError: the file system failed: {os.strerror(number)}\n  where: /runs/x\n")


def test_a_start_that_hangs_over_the_shards_is_not_said_to_hang_over_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `data.verify: open` every byte of them is read."""
    begun: list[str] = []
    program = runpy.run_module("launcher.train", run_name="launcher_train")

    def damaged(_: Any) -> None:
        raise ShardError(f"hangs {begun[-1]}")

    begin = Pulse.begin
    monkeypatch.setattr(Pulse, "begin", lambda self, what: (begun.append(what), begin(self, what)))
    replaced = {"ensure_shards": no, "join": no, "find_checkpoint": no, "open_data": damaged}
    program["main"].__globals__.update(replaced)
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("clm", tmp_path, tmp_path))
    assert program["main"](["--ds_config", "zero1", "--recipe", str(recipe)]) == 2
    assert capsys.readouterr().err == "ShardError: hangs opening the shards\n"


def no(*_: Any) -> None:
    """Nothing is done, or there."""


@pytest.mark.parametrize(
    ("zero", "device_gb", "told"),
    [
        ({"stage": 3, "reduce_bucket_size": 5e8}, 8.0, "the buffers of overlap_comm take 4.5 GB of the device's 8.0"),
        ({"stage": 3}, 8.0, "take 4.5 GB"),  # DeepSpeed's own size
        ({"stage": 2, "overlap_comm": True, "reduce_bucket_size": 5e8}, 8.0, "111111111 or less"),
        ({"stage": 2, "reduce_bucket_size": 5e8}, 8.0, ""),  # does not overlap
        ({"stage": 3, "reduce_bucket_size": 5e7}, 8.0, ""),
        ({"stage": 3, "reduce_bucket_size": 5e8}, 80.0, ""),
        ({"stage": 0}, 8.0, ""),
        ({"stage": 3, "reduce_bucket_size": 5e8}, None, ""),  # a CPU
    ],
)
def test_a_run_says_once_that_buffers_take_most_of_its_device(
    zero: dict[str, Any], device_gb: float | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = runpy.run_module("launcher.train", run_name="launcher_train")
    monkeypatch.setattr(process, "device_bytes", lambda: None if device_gb is None else int(device_gb * 1e9))
    lines = []
    for rank in range(2):
        written = io.StringIO()
        program["tell_buffers"]({"zero_optimization": zero}, Console(quiet=rank != 0, file=written))
        lines += written.getvalue().splitlines()
    assert len(lines) == (1 if told else 0)
    assert told in "".join(lines)


def test_the_memory_of_a_device_is_asked_of_its_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    class Accelerator:
        def __init__(self, name: str) -> None:
            self.device_name = lambda: name
            self.total_memory = lambda: 42

    for name, size in (("cuda", 42), ("cpu", None)):
        monkeypatch.setattr(process, "get_accelerator", lambda name=name: Accelerator(name))
        assert process.device_bytes() == size
