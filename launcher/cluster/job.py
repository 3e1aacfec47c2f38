"""One job, whatever starts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.cluster.hostfile import Host
from launcher.errors import ClusterError


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmRequest:
    """What only Slurm is asked for; nothing that is None is said, so that the script's own line holds."""

    nodes: int
    """Nodes the ranks run on."""
    spares: int = 0
    """Nodes asked for beside them, to replace those that fail."""
    tasks_per_node: int | None = None
    """Ranks of a node."""
    gpus_per_node: int | None = None
    """Accelerators of a node; a rank each."""
    time: str | None = None
    """Limit, as sbatch takes it: 4:00:00."""
    partition: str | None = None
    account: str | None = None
    prologue: Path | None = None
    """Shell file of the user's, read before anything starts: modules, a container, interfaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be run, where: everything a back end needs to start it."""

    arguments: tuple[str, ...]
    """Words behind launcher/train.py: --ds_config, --recipe, overrides."""
    hosts: tuple[Host, ...]
    """Machines and their ranks; Slurm chooses its own."""
    hostfile: Path | None = None
    """Where the hosts were read."""
    folder: Path
    """The project, at the same path on every machine."""
    python: str
    """Interpreter, likewise."""
    env: tuple[tuple[str, str], ...] = ()
    """Variables that every rank gets, secrets included."""
    added: frozenset[str] = frozenset()
    """Those of them that the environment of the one who launches lacks, or has otherwise."""
    master_port: int
    """Port of the first host at which the ranks meet."""
    slurm: SlurmRequest

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return sum(host.slots for host in self.hosts)

    @property
    def master_addr(self) -> str:
        """Where the ranks meet: the first host, or this machine where it is the only one."""
        return self.hosts[0].name if len(self.hosts) > 1 else "127.0.0.1"


def first_hosts(hosts: list[Host], nodes: int | None, slots: int | None) -> tuple[Host, ...]:
    """The first `nodes` hosts, `slots` ranks on each; all of either where None is given.

    Raises:
        ClusterError: There are not as many hosts, or one has fewer slots.
    """
    if nodes is not None and nodes > len(hosts):
        raise ClusterError(f"{nodes} nodes are asked for, the hostfile has {len(hosts)}", "--nodes", "name more hosts")
    chosen = hosts[:nodes]
    for host in chosen:
        if slots is not None and slots > host.slots:
            raise ClusterError(
                f"{slots} ranks a node are asked for, {host.name} has {host.slots} slots", "--slots", "ask for fewer"
            )
    return tuple(Host(host.name, host.slots if slots is None else slots) for host in chosen)
