"""Slurm's node lists and DeepSpeed's hostfiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cluster.hostfile import Host, read_hostfile
from launcher.cluster.slurm import expand_nodelist, tasks_per_node
from launcher.errors import ClusterError

HOSTFILES = Path(__file__).resolve().parents[3] / "hostfiles"


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[08-10,3]", ["node08", "node09", "node10", "node3"]),
        ("a,b[1-2],c", ["a", "b1", "b2", "c"]),
        ("gpu-a[01-02]b", ["gpu-a01b", "gpu-a02b"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_node_lists_are_expanded_in_order(text: str, hosts: list[str]) -> None:
    assert expand_nodelist(text) == hosts


NAMES = st.text("abc-", min_size=1, max_size=4)
RANGES = st.tuples(st.integers(0, 120), st.integers(0, 30), st.integers(1, 4))


@given(st.lists(st.tuples(NAMES, st.lists(RANGES, max_size=3), st.sampled_from(["", "b"])), min_size=1, max_size=4))
def test_what_was_shortened_comes_out_again(pieces: list[tuple[str, list[tuple[int, int, int]], str]]) -> None:
    short, hosts = [], []
    for before, ranges, after in pieces:
        inside = ",".join(f"{first:0{width}d}-{first + more:0{width}d}" for first, more, width in ranges)
        short.append(f"{before}[{inside}]{after}" if ranges else before + after)
        numbers = [f"{n:0{width}d}" for first, more, width in ranges for n in range(first, first + more + 1)]
        hosts += [before + number + after for number in (numbers if ranges else [""])]
    assert expand_nodelist(",".join(short)) == hosts


@pytest.mark.parametrize(
    "text", ["", ",", "a,,b", "a,", "node[1-", "node[a-b]", "[", "node]1", "node[1-2-3]", "node[3-1],a", "node[]"]
)
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="node list"):
        expand_nodelist(text)


@pytest.mark.parametrize(("text", "tasks"), [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2,1", [1, 2, 1])])
def test_tasks_per_node_are_expanded(text: str, tasks: list[int]) -> None:
    assert tasks_per_node(text) == tasks


@pytest.mark.parametrize("text", ["", "x", "0", "2(x0)", "2(3)", "2,", "-1"])
def test_what_is_no_list_of_tasks_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="is no list of tasks per node"):
        tasks_per_node(text)


@pytest.mark.parametrize("name", ["localhost", "two_nodes"])
def test_shipped_hostfiles_are_read_by_us(name: str) -> None:
    hosts = read_hostfile(HOSTFILES / name)
    assert hosts == {"localhost": [Host("localhost", 2)], "two_nodes": [Host("node1", 8), Host("node2", 8)]}[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("node1\n", "'node1' is not a host"),
        ("node1 slots=x\n", "slots=x is not a number of ranks"),
        ("node1 slots=0\n", "write slots=1 or more"),
        ("# nobody\n\n", "the hostfile names no host"),
        ("a slots=1\na slots=2\n", "hosts:2"),
    ],
)
def test_a_wrong_hostfile_is_told_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(content)
    with pytest.raises(ClusterError) as caught:
        read_hostfile(path)
    assert message in str(caught.value)


def test_a_hostfile_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ClusterError, match="it is no UTF-8 text"):
        read_hostfile(path)


@pytest.mark.slow
def test_shipped_hostfiles_are_read_the_same_by_deepspeed() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    for path in sorted(HOSTFILES.iterdir()):
        assert list(fetch_hostfile(str(path)).items()) == [(host.name, host.slots) for host in read_hostfile(path)]


def test_a_missing_hostfile_is_an_error_here(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="the hostfile cannot be read"):
        read_hostfile(tmp_path / "none")
