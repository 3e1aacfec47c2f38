"""Ranks that were not started as one run are told so, and do not wait for each other."""

from __future__ import annotations

import socket
from pathlib import Path

import jobs
import pytest
from ranks import run_ranks


@pytest.mark.parametrize(
    ("variables", "world_size", "message"),
    [
        ({1: {"WORLD_SIZE": "3"}}, 2, "and another of"),
        ({2: {"RANK": "1", "LOCAL_RANK": "1"}}, 3, "two processes were started as rank 1"),
    ],
)
def test_ranks_that_are_told_different_things_do_not_wait(
    variables: dict[int, dict[str, str]], world_size: int, message: str
) -> None:
    told = run_ranks(jobs.meet, world_size, variables, 5.0)
    assert "met" not in told
    assert [line for line in told if message in line and "start all ranks by one command" in line]


def test_ranks_of_one_run_meet() -> None:
    assert run_ranks(jobs.meet, 2, {}, 60.0) == ["met", "met"]


def test_ranks_that_meet_try_no_compiler(tmp_path: Path) -> None:
    """DeepSpeed would, for each of its operations."""
    compiler, asked = tmp_path / "cc", tmp_path / "asked"
    compiler.write_text(f"#!/bin/sh\ntouch '{asked}'\nexit 1\n")
    compiler.chmod(0o755)
    assert run_ranks(jobs.meet, 1, {0: {"CC": str(compiler)}}, 60.0) == ["met"]
    assert not asked.exists()


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        told = run_ranks(jobs.meet, 1, {0: {"MASTER_PORT": port}}, 5.0)
    assert f"port {port}, at which the ranks are to meet, is taken" in told[0]
