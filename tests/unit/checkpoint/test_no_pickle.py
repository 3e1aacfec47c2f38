"""Nothing that a run starts or goes on with unpickles: pickles run code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import launcher

PACKAGE = Path(launcher.__file__).parent
READS_DEEPSPEEDS = PACKAGE / "checkpoint" / "deepspeed_files.py"  # through an allow-list; see test_import_deepspeed
# What one writes in memory the other takes a moment later; nobody else may write to it.
GIVES_TO_WORKERS, WORKS = PACKAGE / "prepare" / "pool.py", PACKAGE / "prepare" / "worker.py"
MODULES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
CALLS = (
    "torch.load",
    "torch.save",
    "torch.distributed.all_gather_object",
    "torch.distributed.gather_object",
    "torch.distributed.broadcast_object_list",
    "torch.distributed.scatter_object_list",
)


def unpicklers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in named if node.module.split(".")[0] in MODULES or name in CALLS)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in CALLS:
            yield ast.unparse(node)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield "allow_pickle"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "f(allow_pickle=True)",
    ],
)
def test_what_is_looked_for_is_found(source: str) -> None:
    assert list(unpicklers(source))


def test_no_module_unpickles_but_those_that_take_over_deepspeeds_checkpoints_and_start_workers() -> None:
    found = {path: list(unpicklers(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py"))}
    assert {path for path, names in found.items() if names} == {READS_DEEPSPEEDS, GIVES_TO_WORKERS, WORKS}


def test_the_run_does_not_import_that_one() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    importers = {name for name, source in sources.items() if f"checkpoint.{READS_DEEPSPEEDS.stem} import" in source}
    assert importers == {"takeover.py"}
