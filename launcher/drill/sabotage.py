"""Harm that can only be done from inside: what a drill has the processes of a run do to themselves.

The training program knows nothing of it. `site/sitecustomize.py`, put on PYTHONPATH by the drill, calls `arm` when a
process starts; it looks at what Python does (an audit hook) or puts itself before a function of a module as that is
imported. Standard library only.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "PRETRAIN_SABOTAGE"
SITE = Path(__file__).with_name("site")

PHASES = ("writing", "manifest", "rename", "tidying")
"""Of a save: before a rank's file, before the manifest, before the name, before older ones are deleted."""


def order(kind: str, **fields: Any) -> dict[str, str]:
    """Environment that makes the processes of a run do harm to themselves.

    Args:
        kind: `save` (die in a phase of a save), `nan` (a loss that is no number), `slow` (every step), `clock`.
        fields: What the functions below read; and `rank`, without which all do it.
    """
    path = os.pathsep.join(p for p in (str(SITE), str(SITE.parents[2]), os.environ.get("PYTHONPATH", "")) if p)
    return {VARIABLE: json.dumps({"kind": kind, **fields}), "PYTHONPATH": path}


def arm(env: Mapping[str, str]) -> None:
    """Prepare what this process was ordered to do; nothing without an order, or where it is another rank's."""
    if VARIABLE not in env:
        return
    wanted = json.loads(env[VARIABLE])
    if "rank" in wanted and env.get("RANK") != str(wanted["rank"]):
        return
    KINDS[wanted["kind"]](wanted)


def _die_in_save(wanted: dict[str, Any]) -> None:
    phase, save = wanted["phase"], int(wanted["save"])
    saves: set[str] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            return
        path = str(arguments[0])
        if "checkpoints" not in path:
            return
        for part in Path(path).parts:
            if part.startswith(".saving-"):
                saves.add(part)
        if len(saves) >= save and _is_phase(phase, event, path):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _is_phase(phase: str, event: str, path: str) -> bool:
    name = Path(path).name
    if phase == "writing":
        return event == "open" and ".saving-" in path and name.startswith("rank-")
    if phase == "manifest":
        return event == "open" and ".saving-" in path and name.startswith("manifest")
    if phase == "rename":
        return event == "os.rename" and name.startswith(".saving-")
    return event in ("os.remove", "shutil.rmtree", "os.rmdir") and ".saving-" not in path


def _lose_number(wanted: dict[str, Any]) -> None:
    def spoil(module: ModuleType) -> None:
        sound, step, calls = module.losses, int(wanted["step"]), 0

        def losses(engine: Any, *arguments: Any) -> Any:
            nonlocal calls
            sums = sound(engine, *arguments)
            if engine.module.training:
                calls += 1
                if step <= calls < step + int(wanted.get("times", 1)):
                    return sums * math.nan
            return sums

        module.losses = losses  # type: ignore[attr-defined]

    _when_imported("launcher.engine.steps", spoil)


def _be_slow(wanted: dict[str, Any]) -> None:
    def slow_down(module: ModuleType) -> None:
        sound = module.losses

        def losses(engine: Any, *arguments: Any) -> Any:
            time.sleep(float(wanted["seconds"]))
            return sound(engine, *arguments)

        module.losses = losses  # type: ignore[attr-defined]

    _when_imported("launcher.engine.steps", slow_down)


def _fake_clock(wanted: dict[str, Any]) -> None:
    """Begin again under libfaketime, whose clock the drill sets through a file."""
    if "LD_PRELOAD" in os.environ:
        return
    faked = {
        "LD_PRELOAD": wanted["library"],
        "FAKETIME_TIMESTAMP_FILE": wanted["file"],
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    os.execve(sys.executable, sys.orig_argv, {**os.environ, **faked})


KINDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "save": _die_in_save,
    "nan": _lose_number,
    "slow": _be_slow,
    "clock": _fake_clock,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Calls a function with a module as soon as it has been imported."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self._name, self._act = name, act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module as it would be found, and have its loader call the function."""
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        load, act = spec.loader.exec_module, self._act

        def exec_module(module: ModuleType) -> None:
            load(module)
            act(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _when_imported(name: str, act: Callable[[ModuleType], None]) -> None:
    if name in sys.modules:  # a forked rank, whose parent has imported everything
        act(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, act))
