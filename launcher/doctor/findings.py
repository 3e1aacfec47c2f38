"""What was looked at, how it stands, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from launcher.errors import LauncherError

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    """`wrong` stops the run, or every run where no recipe was given; a `note` stops only those that need it."""
    found: str
    """What is there."""
    fix: str = ""
    """What to do about it; empty where there is nothing to do."""


def from_error(name: str, error: LauncherError) -> Finding:
    """What a check of the run's own raised."""
    where = f" ({error.where})" if error.where else ""
    return Finding(name=name, state="wrong", found=f"{error.what}{where}", fix=error.fix)


def is_sound(findings: Sequence[Finding]) -> bool:
    """Whether nothing stops the run."""
    return all(finding.state != "wrong" for finding in findings)


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """A line each, and the fix below it."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<6}{finding.name:<{width}}  {finding.found}")
        if finding.fix:
            first, *more = finding.fix.splitlines()
            lines.append(f"{'':<{width + 8}}fix: {first}")
            lines += [f"{'':<{width + 13}}{line.strip()}" for line in more]
    return lines


def as_json(findings: Sequence[Finding]) -> str:
    """One object."""
    return json.dumps(
        {"sound": is_sound(findings), "findings": [asdict(finding) for finding in findings]}, ensure_ascii=False
    )
