"""`pretrain hostfile`: check one, or write one from the allocation this is in."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from launcher.cluster.allocation import allocated_hosts, counted, origin_of, with_slots, written
from launcher.cluster.hostfile import Host, read_hostfile
from launcher.cluster.hosts import check_names, check_reach
from launcher.cluster.rank import in_mpi, names_over_mpi
from launcher.config.arguments import positive
from launcher.errors import ClusterError, UsageError


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    command.add_argument("file", type=Path, nargs="?", metavar="FILE", help="hostfile to check")
    command.add_argument(
        "--reach", action="store_true", help="also ask every host over ssh, and count its accelerators"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="write the allocation's here; else to the terminal")
    command.add_argument("--slots", type=positive, metavar="N", help="of every host, whatever the allocation says")


def run(options: argparse.Namespace) -> None:
    """Check or write.

    Raises:
        ClusterError: The hostfile is wrong, a host is not reached, or this is no allocation.
        UsageError: Options do not go together.
    """
    of_writing = [f"--{name}" for name in ("slots", "out") if getattr(options, name) is not None]
    if options.file is not None and of_writing:
        raise UsageError(
            f"a hostfile is checked as it is, without {', '.join(of_writing)}",
            "command line",
            f"leave {options.file} out to write one from the allocation, or edit it",
        )
    if options.file is None and options.reach:
        raise UsageError(
            "--reach asks the hosts of a file, and none is named",
            "command line",
            "write it with --out FILE, then: pretrain hostfile FILE --reach",
        )
    if options.file is not None:
        check(options.file, reach=options.reach)
        return
    hosts = _hosts_here()
    if hosts is None:  # another rank of mpirun's writes
        return
    text = written(with_slots(hosts, options.slots), origin_of(os.environ))
    if options.out is None:
        print(text, end="")
        return
    try:
        options.out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ClusterError(f"it cannot be written: {error.strerror}", str(options.out), "name another --out") from None
    print(f"{options.out}: {sum(host.slots for host in hosts)} ranks on {len(hosts)} hosts")


def check(path: Path, *, reach: bool) -> None:
    """Print the hosts of a file that is sound.

    Raises:
        ClusterError: It is not.
    """
    hosts = read_hostfile(path)
    if reach:
        check_names(hosts)
        check_reach(hosts)
    for host in hosts:
        print(f"{host.name}: {host.slots} ranks{', reached' if reach else ''}")
    print(f"in all: {sum(host.slots for host in hosts)} ranks on {len(hosts)} hosts")


def _hosts_here() -> list[Host] | None:
    if not in_mpi(os.environ):
        return allocated_hosts(os.environ)
    names = names_over_mpi()
    return counted(names) if names else None
