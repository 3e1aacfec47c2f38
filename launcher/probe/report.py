"""What a check found, as people, scripts and Slurm read it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from launcher import units
from launcher.errors import EXIT_DONE, EXIT_REQUEUE, EXIT_USER

State = Literal["ok", "note", "wrong", "unfit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    """`wrong` is for the user to mend; `unfit` names hosts to leave out."""
    found: str
    """How it stands."""
    fix: str = ""
    """What to do about it."""
    hosts: Sequence[str] = ()
    """Those it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One time that all were asked."""

    name: str
    elapsed_s: float
    asked: int
    """Ranks."""
    answered: int
    """Of them, in time."""


@dataclass(slots=True)
class Report:
    """Everything a check found."""

    num_ranks: int
    slots: dict[str, int] = field(default_factory=dict)
    """Host → its ranks, in their order, of those that were there."""
    findings: list[Finding] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def add(self, name: str, state: State, found: str, *, fix: str = "", hosts: Sequence[str] = ()) -> None:
        """Take in a finding."""
        self.findings.append(Finding(name=name, state=state, found=found, fix=fix, hosts=tuple(hosts)))

    @property
    def excluded(self) -> list[str]:
        """Hosts to leave out, each once."""
        return list(dict.fromkeys(host for one in self.findings if one.state == "unfit" for host in one.hosts))

    @property
    def exit_code(self) -> int:
        """What the check ends with: what the user must mend comes first, for no other hosts would mend it."""
        states = {finding.state for finding in self.findings}
        return EXIT_USER if "wrong" in states else EXIT_REQUEUE if "unfit" in states else EXIT_DONE

    def lines(self) -> list[str]:
        """A line for each finding, and its fix below it."""
        width = max((len(finding.name) for finding in self.findings), default=0)
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.state:<6}{finding.name:<{width}}  {finding.found}")
            if finding.fix:
                lines.append(f"{'':<{width + 8}}fix: {finding.fix}")
        taken = sum(one.elapsed_s for one in self.rounds)
        end = {EXIT_DONE: "all are fit", EXIT_USER: "something is to be mended"}.get(
            self.exit_code, f"leave out {', '.join(self.excluded) or 'nobody yet'}"
        )
        sizes = (things(len(self.slots), "host"), things(self.num_ranks, "rank"), things(len(self.rounds), "round"))
        told = f"{', '.join(sizes)} in {units.duration(taken)}"
        return [*lines, f"check: {told}: {end}"]

    def as_json(self) -> str:
        """One object."""
        return json.dumps(
            {
                "exit_code": self.exit_code,
                "excluded": self.excluded,
                "hosts": self.slots,
                "findings": [asdict(finding) for finding in self.findings],
                "rounds": [asdict(one) for one in self.rounds],
            },
            ensure_ascii=False,
        )


def things(number: int, name: str) -> str:
    """`1 host`, `2 hosts`."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def write_lists(report: Report, exclude: Path | None, hostfile: Path | None) -> None:
    """Write which hosts to leave out, and which to go on with; neither where all are fit.

    Args:
        report: Of the check.
        exclude: Gets `a,b,c` on one line, for Slurm's --exclude.
        hostfile: Gets `host slots=N` lines, for deepspeed --hostfile.
    """
    bad = report.excluded
    for path, text in (
        (exclude, ",".join(bad) + "\n"),
        (hostfile, "".join(f"{host} slots={slots}\n" for host, slots in _fit(report.slots, bad))),
    ):
        if path is None:
            continue
        path.unlink(missing_ok=True)
        if bad and report.exit_code == EXIT_REQUEUE:
            writing = path.with_name(f"{path.name}.{os.getpid()}")
            writing.write_text(text, encoding="utf-8")
            os.replace(writing, path)


def _fit(slots: Mapping[str, int], bad: Sequence[str]) -> list[tuple[str, int]]:
    return [(host, number) for host, number in slots.items() if host not in bad]
