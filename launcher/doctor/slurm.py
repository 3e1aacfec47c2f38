"""What a job asks of Slurm against what the cluster has: partition, account, nodes, GPUs, time; on its login node."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.doctor.findings import Finding
from launcher.errors import did_you_mean

NAME = "slurm"
PARTITIONS = ("sinfo", "--noheader", "--format=%P|%a|%t|%D|%c|%G|%l|%L")
ACCOUNTS = ("sacctmgr", "--noheader", "--parsable2", "show", "assoc", "format=account,partition")
PATIENCE_S = 20.0
"""A controller that does not answer by then is down (assumption; Slurm's own MessageTimeout is 10 s)."""
OUT_OF_USE = re.compile(r"\*$|^(down|drain|drng|fail|unk|inval|maint)")
"""Short states of nodes that take no job. Source: sinfo(1), NODE STATE CODES."""
LINE = re.compile(r"^#SBATCH\s+--(partition|account|time)=(\S+)")
MINUTE, HOUR, DAY = 60, 3600, 86_400

Ask = Callable[[Sequence[str]], str]
"""Runs a command of Slurm; raises OSError where it cannot be run or fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a job is submitted with."""

    nodes: int | None = None
    ranks_per_node: int | None = None
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    needs_gpus: bool = False
    """Whether the recipe names what only a GPU has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Nodes of a partition that are alike, as one line of sinfo tells them."""

    partition: str
    is_default: bool
    is_up: bool
    """Whether the partition takes jobs."""
    state: str
    number: int
    cores: int
    gpus: int
    limit: str
    """Longest time of a job."""
    default_time: str
    """Of a job that names none."""


def of_script(path: Path) -> dict[str, str]:
    """What the #SBATCH lines of a batch script ask for, by option."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {match[1]: match[2] for line in lines if (match := LINE.match(line))}


def ask_slurm(words: Sequence[str]) -> str:
    """Run a command of Slurm."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"{words[0]} does not answer within {PATIENCE_S:.0f} s") from None
    if done.returncode != 0:
        raise OSError(" ".join(done.stderr.split()) or f"{words[0]} ended with {done.returncode}")
    return done.stdout


def look_at_slurm(wanted: Wanted, ask: Ask = ask_slurm) -> Iterator[Finding]:
    """Hold what is wanted against the cluster.

    Args:
        wanted: By the job; what is None is not held against anything.
        ask: Runs a command.
    """
    named = wanted.partition or wanted.account or wanted.time
    if shutil.which(PARTITIONS[0]) is None:
        if named:
            fix = "run pretrain doctor on the cluster's login node"
            yield Finding(name=NAME, state="note", found="there is no Slurm here: not known is what it has", fix=fix)
        return
    try:
        everything = read_partitions(ask(PARTITIONS))
    except OSError as error:
        fix = "try again, or ask the cluster's operators"
        yield Finding(name=NAME, state="wrong" if named else "note", found=f"it does not answer: {error}", fix=fix)
        return
    nodes, finding = _partition(wanted, everything)
    yield finding
    if not nodes:
        return
    yield from _numbers(wanted, nodes)
    yield from _time(wanted, nodes)
    yield from _account(wanted, nodes[0].partition, ask)


def read_partitions(text: str) -> list[Nodes]:
    """The lines of `PARTITIONS`."""
    found = []
    for line in text.splitlines():
        words = line.split("|")
        if len(words) != 8 or not words[3].isdecimal():
            continue
        name, up, state, number, cores, gres, limit, default_time = words
        found.append(
            Nodes(
                partition=name.rstrip("*"),
                is_default=name.endswith("*"),
                is_up=up == "up",
                state=state,
                number=int(number),
                cores=int("".join(re.findall(r"^\d+", cores)) or 0),  # `64+`: 64 at least
                gpus=_gpus(gres),
                limit=limit,
                default_time=default_time,
            )
        )
    return found


def seconds(text: str) -> int | None:
    """A time as Slurm writes it (`90`, `90:00`, `4:00:00`, `2-0`, `2-12:00`); None for infinite, or for no time."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        return None
    days, first, second, third = (int(piece or 0) for piece in match.groups())
    if match[1] is not None:  # days-hours[:minutes[:seconds]]
        return days * DAY + first * HOUR + second * MINUTE + third
    if match[4] is not None:
        return first * HOUR + second * MINUTE + third
    return first * MINUTE + second


def _gpus(gres: str) -> int:
    """Of `gpu:a100:8(S:0-1),nvme:1`."""
    counts = re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres)
    return sum(map(int, counts))


def _partition(wanted: Wanted, everything: Sequence[Nodes]) -> tuple[list[Nodes], Finding]:
    names = list(dict.fromkeys(nodes.partition for nodes in everything))
    name = wanted.partition or next((nodes.partition for nodes in everything if nodes.is_default), None)
    if name is None:
        fix = f"--partition NAME: {', '.join(names)}"
        return [], Finding(name=NAME, state="wrong", found="no partition is named, and none is the default", fix=fix)
    nodes = [some for some in everything if some.partition == name]
    if not nodes:
        fix = did_you_mean(name, names) + " (sinfo -s)"
        return [], Finding(name=NAME, state="wrong", found=f"there is no partition {name!r}", fix=fix)
    if not nodes[0].is_up:
        return nodes, Finding(name=NAME, state="wrong", found=f"the partition {name} takes no jobs", fix="use another")
    kinds = dict.fromkeys(f"{some.cores} cores and {some.gpus} GPUs" for some in nodes)
    found = f"partition {name}: {sum(some.number for some in nodes)} nodes, of {' or '.join(kinds)}"
    return nodes, Finding(name=NAME, state="ok", found=found)


def _numbers(wanted: Wanted, nodes: Sequence[Nodes]) -> Iterator[Finding]:
    """Nodes, GPUs and cores."""
    there, ranks = sum(some.number for some in nodes), wanted.ranks_per_node
    if wanted.nodes is not None and wanted.nodes > there:
        found = f"{wanted.nodes} nodes are asked for, {nodes[0].partition} has {there}"
        yield Finding(name="nodes", state="wrong", found=found, fix=f"--nodes={there} or fewer")
        return
    if max(some.gpus for some in nodes) == 0 and wanted.needs_gpus:
        fix = "name a partition with GPUs (sinfo -o '%P %G'), or change model.attention, liger or experts"
        yield Finding(name="gpus", state="wrong", found="the recipe wants GPUs, and no node here has one", fix=fix)
        return
    fit = [some for some in nodes if ranks is None or _room(some) >= ranks]
    if sum(some.number for some in fit) < (wanted.nodes or 1):
        found = f"{ranks} ranks a node are asked for; the nodes have room for {', '.join(_rooms(nodes))}"
        fix = f"fewer ranks a node, on more nodes; {sum(some.number for some in fit)} nodes have room for {ranks}"
        yield Finding(name="gpus" if max(some.gpus for some in nodes) else "cores", state="wrong", found=found, fix=fix)
        return
    usable = sum(some.number for some in fit if not OUT_OF_USE.search(some.state))
    if usable < (wanted.nodes or 1):
        found = f"{usable} of the {there} nodes are in use or free now, {wanted.nodes or 1} are asked for"
        yield Finding(name="nodes", state="note", found=found, fix="the job waits until others are back: sinfo -R")


def _room(nodes: Nodes) -> int:
    """Ranks of a node: one a GPU, else one a core."""
    return nodes.gpus or nodes.cores


def _rooms(nodes: Sequence[Nodes]) -> list[str]:
    return list(dict.fromkeys(f"{_room(some)} ({'GPUs' if some.gpus else 'cores'})" for some in nodes))


def _time(wanted: Wanted, nodes: Sequence[Nodes]) -> Iterator[Finding]:
    limit = seconds(nodes[0].limit)
    if wanted.time is None:
        given = nodes[0].default_time
        told = f"a job gets {given}" if seconds(given) is not None else f"a job gets the partition's {nodes[0].limit}"
        fix = "--time=LIMIT, or the line in slurm/pretrain.sh; a run that needs longer is requeued and goes on"
        yield Finding(name="time", state="note", found=f"no limit is named: {told}", fix=fix)
        return
    asked = seconds(wanted.time)
    if asked is None:
        found = f"{wanted.time!r} is no time limit"
        yield Finding(name="time", state="wrong", found=found, fix="--time=4:00:00, or 2-00:00:00 for two days")
    elif limit is not None and asked > limit:
        found = f"{wanted.time} is longer than the partition's limit, {nodes[0].limit}"
        fix = f"--time={nodes[0].limit}: the run is requeued and goes on"
        yield Finding(name="time", state="wrong", found=found, fix=fix)
    else:
        yield Finding(name="time", state="ok", found=f"{wanted.time}; at most {nodes[0].limit}")


def _account(wanted: Wanted, partition: str, ask: Ask) -> Iterator[Finding]:
    """Whether the account is this user's; nothing where the cluster keeps none."""
    if shutil.which(ACCOUNTS[0]) is None:
        return
    try:
        user = ask(("id", "-un")).strip()
        lines = [line.split("|") for line in ask((*ACCOUNTS, f"user={user}")).splitlines() if "|" in line]
    except OSError:  # without its database, Slurm takes any account
        return
    mine = sorted({account for account, only in lines if only in ("", partition)})
    if wanted.account is not None and wanted.account not in mine:
        found = f"the account {wanted.account!r} is not {user}'s in {partition}"
        fix = did_you_mean(wanted.account, mine) if mine else f"ask for one: sacctmgr show assoc user={user}"
        yield Finding(name="account", state="wrong", found=found, fix=fix)
    elif mine:
        yield Finding(name="account", state="ok", found=wanted.account or f"{user}'s: {', '.join(mine)}")
