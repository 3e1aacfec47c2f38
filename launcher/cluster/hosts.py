"""What can be known of machines before ranks are started on them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from launcher.cluster.hostfile import Host
from launcher.cluster.rank import FIRST_PORT, NUM_PORTS
from launcher.errors import ClusterError

REACH_TIMEOUT_S = 20
PARALLEL = 32
TRIES = 200
"""Ports looked at."""
COUNT_ACCELERATORS = "command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -c ^GPU; true"
"""Prints a number where NVIDIA's tool is there, else nothing: then how many there are is not known."""

Ask = Callable[[str], subprocess.CompletedProcess[str]]
"""Runs COUNT_ACCELERATORS on a host."""


def address_of(host: str) -> str:
    """The first address a name resolves to, IPv4 where it has one.

    Raises:
        ClusterError: It resolves to none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
    except (OSError, UnicodeError):
        raise ClusterError(
            f"the name {host} resolves to no address here",
            socket.gethostname(),
            "mend the name, /etc/hosts or DNS, or write an address",
        ) from None


def is_loopback(address: str) -> bool:
    """Whether an address means the machine that asks."""
    return address.startswith("127.") or address == "::1"


def check_names(hosts: Sequence[Host]) -> None:
    """Every name must mean a machine of its own, the same to all: none may resolve to nothing, nor to "myself".

    Raises:
        ClusterError: One does not.
    """
    names: dict[str, str] = {}
    for host in hosts:
        address = address_of(host.name)
        other = names.setdefault(address, host.name)
        if other != host.name:
            raise ClusterError(
                f"{other} and {host.name} are one machine, {address}", "hostfile", "add up its slots on one line"
            )
        if len(hosts) > 1 and is_loopback(address):
            raise ClusterError(
                f"{host.name} resolves to {address}, which every host takes for itself",
                socket.gethostname(),
                f"give {host.name} its network address in /etc/hosts (a line like `127.0.1.1 {host.name}` does this), "
                "or write that address in the hostfile",
            )


def ask_over_ssh(host: str) -> subprocess.CompletedProcess[str]:
    """Run COUNT_ACCELERATORS on a host; 255 and ssh's own words where it cannot be reached."""
    words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={REACH_TIMEOUT_S // 2}", host, COUNT_ACCELERATORS]
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # a banner of the host's may be in any encoding
            timeout=REACH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 255, "", f"nothing came in {REACH_TIMEOUT_S} s")
    except OSError as error:
        return subprocess.CompletedProcess(words, 255, "", f"ssh: {error.strerror}")


def check_reach(hosts: Sequence[Host], ask: Ask = ask_over_ssh) -> None:
    """Every host must answer over ssh without a question, and have an accelerator for each slot where it can be known.

    Raises:
        ClusterError: Some do not; all of them are named at once.
    """
    with ThreadPoolExecutor(min(len(hosts), PARALLEL)) as pool:
        answers = list(pool.map(ask, [host.name for host in hosts]))
    silent, short = [], []
    for host, answer in zip(hosts, answers, strict=True):
        told = answer.stdout.split()
        if answer.returncode != 0:
            said = answer.stderr.strip().splitlines()
            silent.append(f"{host.name} ({said[-1] if said else f'ssh ended with {answer.returncode}'})")
        elif told and told[-1].isdecimal() and int(told[-1]) < host.slots:
            short.append(f"{host.name} has {told[-1]} accelerators for {host.slots} slots")
    if silent:
        raise ClusterError(
            f"not reached over ssh: {', '.join(silent)}",
            socket.gethostname(),
            "`ssh -o BatchMode=yes HOST true` must work to each; or leave the host out of the hostfile",
        )
    if short:
        raise ClusterError("; ".join(short), "hostfile", "lower slots=, or use --slots")


def accelerators_here() -> int:
    """Accelerators of this machine; 0 where there are none, or none that can be counted without torch."""
    try:
        told = subprocess.run(
            ["sh", "-c", COUNT_ACCELERATORS], capture_output=True, text=True, timeout=60, check=False
        ).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return int(told[-1]) if told and told[-1].isdecimal() else 0


def is_free(port: int) -> bool:
    """Whether a port of this machine can be listened at."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def free_port(first: int = FIRST_PORT) -> int:
    """The first free port of this machine, from `first` on.

    Raises:
        ClusterError: None of many is.
    """
    for number in range(TRIES):
        port = FIRST_PORT + (first - FIRST_PORT + number) % NUM_PORTS
        if is_free(port):
            return port
    raise ClusterError(
        f"{TRIES} ports from {first} on are taken",
        socket.gethostname(),
        "end what holds them, or name a port: MASTER_PORT, or --port of pretrain launch",
    )
