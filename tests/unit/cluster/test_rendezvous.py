"""The host, the port and the interface of a rendezvous are looked at before ranks wait for each other."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest

from launcher.cluster import rendezvous
from launcher.cluster.rank import Place
from launcher.cluster.rendezvous import interfaces, prepare
from launcher.errors import ClusterError

PLACE = Place(
    rank=0, world_size=2, local_rank=0, local_world_size=1, master_addr="node1", master_port=20_000, source="slurm"
)
ADDRESSES = {"node1": "10.0.0.1", "here": "127.0.0.1", "itself": "127.0.1.1", "six": "fe80::1"}


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of three interfaces whose names resolve as above; this one's own are others every time."""

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        if host not in ADDRESSES:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        family = socket.AF_INET6 if ":" in ADDRESSES[host] else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (ADDRESSES[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(rendezvous, "is_free", lambda port: port != 20_001)


def with_interfaces(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    monkeypatch.setattr(rendezvous, "interfaces", lambda: {"lo": "127.0.0.1", **found})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (replace(PLACE, master_port=20_001), "port 20001, at which the ranks are to meet, is taken"),
        (replace(PLACE, master_addr="gone"), "the name gone resolves to no address here"),
        (replace(PLACE, rank=1, master_addr="itself"), "itself, where the ranks are to meet, resolves to 127.0.1.1"),
    ],
)
def test_a_rendezvous_that_cannot_be_is_told(place: Place, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_interfaces(monkeypatch, eth0="10.0.0.1")
    with pytest.raises(ClusterError) as caught:
        prepare(place, {})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("place", "found", "reason"),
    [
        (replace(PLACE, world_size=1), {}, "alone"),
        (replace(PLACE, local_world_size=2), {}, "all on one host"),
        (replace(PLACE, master_addr="itself"), {"ib0": "10.1.0.1"}, "the only one there is"),
        (replace(PLACE, master_addr="six"), {"ib0": "10.1.0.1"}, "IPv6 is left to the libraries"),
    ],
)
def test_an_interface_is_named_where_ranks_are_on_several_hosts(
    place: Place, found: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_interfaces(monkeypatch, **found)
    env: dict[str, str] = {}
    prepare(place, env)
    named = {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "=ib0"} if place.master_addr == "itself" else {}
    assert env == named, reason


def test_of_several_interfaces_the_user_must_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    with_interfaces(monkeypatch, eth0="10.0.0.1", ib0="10.1.0.1")
    with pytest.raises(ClusterError, match="has eth0, ib0 to reach others by"):
        prepare(replace(PLACE, master_addr="itself"), {})


def test_the_users_choice_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with_interfaces(monkeypatch)
    env = {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "ib"}
    prepare(replace(PLACE, master_addr="itself"), env)
    assert env == {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "ib"}


def test_under_torchrun_the_port_is_its_own_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    with_interfaces(monkeypatch)
    prepare(replace(PLACE, local_world_size=2, master_port=20_001), {"TORCHELASTIC_USE_AGENT_STORE": "True"})


def test_this_machines_interfaces_have_their_addresses() -> None:
    assert interfaces()["lo"] == "127.0.0.1"
