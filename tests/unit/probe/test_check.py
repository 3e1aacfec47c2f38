"""A check over real connections names what is wrong, in few rounds, and waits for nobody for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import simulated_hosts
from simulated_hosts import Faults, check, name

from launcher.probe import streams
from launcher.probe.pairs import first_rounds, most_rounds
from launcher.probe.report import Report, write_lists


@pytest.fixture(autouse=True)
def short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAM_S", 0.2)


def states(report: Report) -> dict[str, set[str]]:
    """State → hosts it is said of."""
    found: dict[str, set[str]] = {}
    for finding in report.findings:
        found.setdefault(finding.state, set()).update(finding.hosts)
    return found


def test_sixty_four_good_hosts_are_all_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAM_S", 0.5)  # 64 threads share a core or two: what one waits for evens out
    report = check(64, Faults())
    assert {finding.state for finding in report.findings} == {"ok"}, report.lines()
    assert report.exit_code == 0
    assert len(report.rounds) <= most_rounds(64) == 16
    assert report.lines()[-1].startswith("check: 64 hosts, 64 ranks, ")


def test_among_sixty_four_every_kind_of_fault_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAM_S", 0.5)
    link = first_rounds(60)[2][11]  # of the sixty that are left for the pairs, numbered anew
    left = [number for number in range(64) if number not in (20, 30, 40, 50)]
    one, other = left[link[0]], left[link[1]]
    faults = Faults(
        absent={30},
        hang={20},
        die={40},
        slow_link={5: simulated_hosts.GOOD / 10},
        slow_pair={frozenset((one, other)): simulated_hosts.GOOD / 10},
        flops={50: 4e11},
    )
    report = check(64, faults, round_s=4.0, roll_call_s=6.0)
    expected = {name(number) for number in (30, 20, 40, 5, 50, other)}
    assert set(report.excluded) == expected, "\n".join(report.lines())
    assert report.exit_code == 75
    assert len(report.rounds) <= most_rounds(64)
    told = "\n".join(report.lines())
    assert f"{name(30)}: no word of rank 30 in 6 s" in told
    assert f"{name(20)}: rank 20: no answer in 8 s (compute)" in told
    assert f"{name(40)}: rank 40: its process ended, or its connection was cut" in told
    assert f"{name(50)} rank 50: 0.4 TFLOP/s, 40% of the others'" in told
    assert f"{name(one)} – {name(other)}: " in told
    assert "leave out" in report.lines()[-1]


@pytest.mark.parametrize(
    ("faults", "named", "told", "reason"),
    [
        ({"same": {2: {"code": "dead"}}}, {2}, "host02: dead; others: c0de", "one checkout differs"),
        ({"same": {0: {"recipe": "99"}}}, {0}, "host00: 99; others: 1234", "rank 0's own is the one that differs"),
        ({"same": {1: {"shards law": "0"}}}, {1}, "pretrain verify DIR names the file", "shards that differ"),
        ({"errors": {1: [["there are no shards here (x)", "copy"]]}}, {1}, "host01: there are no shards", "missing"),
        ({"errors": {n: [["no recipe", "f"]] for n in range(3)}}, {0, 1, 2}, "all hosts: no recipe", "a user's slip"),
        ({"room": {2: {"disk_bytes": 5}}}, {2}, "host02: 5 B free in /runs, the checkpoints take 10 B", "a full disk"),
        ({"world_size": {2: 5}}, set(), "rank 2 says that there are 5 ranks, rank 0 says 3", "two worlds"),
    ],
)
def test_what_the_user_must_mend_is_2(
    faults: dict[str, Any], named: set[int], told: str, reason: str, tmp_path: Path
) -> None:
    report = check(3, Faults(**faults), roll_call_s=1.0)
    assert report.exit_code == 2, reason
    assert states(report)["wrong"] == {name(number) for number in named}
    assert told in "\n".join(report.lines())
    write_lists(report, tmp_path / "exclude", tmp_path / "hosts")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("room", "told"),
    [
        ({"shm_bytes": 5}, "host01: 5 B free"),
        ({"load": 9.0, "cores": 4}, "before the run: host01 9 on 4 cores"),
        ({"memory": {"free_bytes": 1, "total_bytes": 100}}, "host01: 1 B of 100 B free"),
    ],
)
def test_what_is_tight_is_a_note(room: dict[str, Any], told: str) -> None:
    report = check(2, Faults(room={1: room}))
    assert report.exit_code == 0
    assert told in "\n".join(report.lines())


def test_a_wrong_sum_names_its_host() -> None:
    report = check(3, Faults(wrong_sum={1}))
    assert report.excluded == [name(1)]
    assert "the sum is wrong" in "\n".join(report.lines())


def test_a_host_whose_accelerators_reach_others_slowly_is_named_though_its_network_is_well() -> None:
    report = check(4, Faults(fabric={2: 1e8}))
    assert report.excluded == [name(2)]
    (told,) = [finding for finding in report.findings if finding.name == "link of accelerators"]
    assert told.found == "host02: 100 MB/s at best with 3 other hosts; 1e+03 MB/s elsewhere"
    assert len(report.rounds) <= most_rounds(4)


def test_where_most_stop_at_once_nobody_is_accused() -> None:
    report = check(4, Faults(hang={0, 1, 3}), round_s=1.0)
    assert (report.exit_code, report.excluded) == (75, [])
    assert "3 of 4 hosts stopped answering (compute)" in "\n".join(report.lines())


def test_unfit_hosts_are_written_for_slurm_and_as_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "exclude").write_text("an earlier one")
    report = check(4, Faults(absent={2}, wrong_sum={1}), roll_call_s=1.0)
    assert report.exit_code == 75
    write_lists(report, tmp_path / "exclude", tmp_path / "hosts")
    assert (tmp_path / "exclude").read_text() == "host02,host01\n"
    assert (tmp_path / "hosts").read_text() == "host00 slots=1\nhost03 slots=1\n"
    told = json.loads(report.as_json())
    assert (told["exit_code"], told["excluded"]) == (75, ["host02", "host01"])
    assert told["rounds"][0]["name"] == "roll call"


def test_where_most_hosts_stay_away_nobody_is_accused(tmp_path: Path) -> None:
    report = check(5, Faults(absent={1, 2, 4}), roll_call_s=1.0)
    assert (report.exit_code, report.excluded) == (75, [])
    assert "2 of 5 hosts came in 1 s: too few to say who is cut off" in "\n".join(report.lines())
    write_lists(report, tmp_path / "exclude", tmp_path / "hosts")
    assert not list(tmp_path.iterdir())


def test_ranks_whose_hosts_nobody_knows_are_named_by_number() -> None:
    report = check(4, Faults(absent={1, 2}), roll_call_s=1.0, expected=[])
    assert report.exit_code == 2
    assert "no word of rank 1-2 in 1 s" in "\n".join(report.lines())
    assert "--hostfile FILE" in "\n".join(report.lines())
