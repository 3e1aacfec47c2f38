"""Before ranks meet: is there such a host, is the port free, and which interface leads there.

Gloo takes the interface its own host name resolves to, which on many machines is 127.0.1.1, and NCCL the first it
finds. The one that leads to the first host is the one by which the ranks can reach each other.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import MutableMapping

from launcher.cluster.hosts import address_of, is_free, is_loopback
from launcher.cluster.rank import Place
from launcher.errors import ClusterError

SIOCGIFADDR = 0x8915
"""Asks the kernel for an interface's IPv4 address (linux/sockios.h)."""


def prepare(place: Place, env: MutableMapping[str, str]) -> None:
    """Check the rendezvous, and name the interface to gloo and NCCL unless the user has.

    Args:
        place: Of this rank, with its master.
        env: Gets GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME.

    Raises:
        ClusterError: The first host has no address, or one that every host takes for itself; its port is taken; or
            which interface leads to the others cannot be told.
    """
    has_agents_store = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself listens there
    if place.rank == 0 and not has_agents_store and not is_free(place.master_port):
        raise ClusterError(
            f"port {place.master_port}, at which the ranks are to meet, is taken on {socket.gethostname()}",
            "MASTER_PORT",
            "name another (--master_port, --port, MASTER_PORT), or end what an earlier run left there",
        )
    if place.world_size == place.local_world_size:
        return
    address = address_of(place.master_addr)
    if is_loopback(address) and place.rank != place.local_rank:
        raise ClusterError(
            f"{place.master_addr}, where the ranks are to meet, resolves to {address} on {socket.gethostname()}, "
            "which every host takes for itself",
            "MASTER_ADDR",
            f"give {place.master_addr} its network address in /etc/hosts or DNS, or name an address",
        )
    if "GLOO_SOCKET_IFNAME" in env and "NCCL_SOCKET_IFNAME" in env:
        return
    name = _interface_to(address, place.master_port)
    if name:
        env.setdefault("GLOO_SOCKET_IFNAME", name)
        env.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": this one, not all that begin like it


def _interface_to(address: str, port: int) -> str:
    """The interface by which packets to an address leave; empty where the kernel is not to be asked (IPv6)."""
    if ":" in address:
        return ""
    own = interfaces()
    if is_loopback(address):  # this is the first host, and its own name is no help
        names = [name for name, its in own.items() if not is_loopback(its)]
        if len(names) != 1:
            raise ClusterError(
                f"{socket.gethostname()} resolves to {address} on itself, and has {', '.join(names) or 'none'} to "
                "reach others by",
                "GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME",
                "export them with the interface between the hosts, or mend /etc/hosts",
            )
        return names[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))  # of a datagram socket: nothing is sent, a route is looked up
        except OSError as error:
            raise ClusterError(
                f"no way leads from {socket.gethostname()} to {address}: {error.strerror}",
                "MASTER_ADDR",
                "see: ip route",
            ) from None
        local = probe.getsockname()[0]
    if is_loopback(local):  # the first host's own address: the kernel takes the short way
        local = address
    return next((name for name, its in own.items() if its == local), "")


def interfaces() -> dict[str, str]:
    """IPv4 addresses of this machine's interfaces, by name."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found
