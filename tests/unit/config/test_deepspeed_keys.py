"""The table of DeepSpeed's keys is that of the installed version, and each of its keys has an answer here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config import deepspeed_keys
from launcher.config.deepspeed_check import ALIASES, FILE_KEYS, LOWEST_STAGE, NOT_HERE, RECIPE_KEYS
from launcher.config.deepspeed_keys import TABLE, keys_of, other_version, removed_keys

SUPPORT = Path(__file__).parents[2] / "support"


def test_the_table_is_made_of_the_installed_deepspeed() -> None:
    # In a process of its own: an import of DeepSpeed stays.
    program = f"import json, sys; sys.path.insert(0, {str(SUPPORT)!r}); import deepspeed_source; "
    program += "sys.stderr.write('TABLE' + json.dumps(deepspeed_source.read_table()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    made = json.loads(done.stderr.rpartition("TABLE")[2])
    if os.environ.get("WRITE_RECORD"):
        TABLE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    assert json.loads(TABLE.read_text(encoding="utf-8")) == made


def test_every_key_is_taken_decided_by_the_recipe_or_refused_with_a_reason() -> None:
    refused = {name for name in NOT_HERE if "." not in name}
    groups = (FILE_KEYS, RECIPE_KEYS.keys(), refused)
    assert keys_of("").keys() == set().union(*groups)
    assert sum(len(group) for group in groups) == len(keys_of("")), "a key stands in two of them"


def test_what_is_said_of_single_keys_is_said_of_keys_that_are_there() -> None:
    zero = keys_of("zero_optimization").keys()
    assert zero >= LOWEST_STAGE.keys()
    for name in ALIASES:
        assert {name, f"stage3_{name}"} <= zero
    for name in NOT_HERE:
        block, _, key = name.rpartition(".")
        assert key in keys_of(block)
    assert "mics_shard_size" in removed_keys("zero_optimization")


def test_another_version_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert other_version() is None
    monkeypatch.setattr(deepspeed_keys, "version", lambda name: "9.9.9")
    assert "DeepSpeed 9.9.9 is installed" in str(other_version())
