"""Which packages are installed, and whether they fit each other: read from their metadata, none is imported."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from launcher.config.deepspeed_keys import other_version
from launcher.config.places import ROOT
from launcher.doctor.findings import Finding

PROJECT = "pretraining-launcher"
TRAINING = ("torch", "deepspeed", "transformers", "accelerate", "datasets", "tokenizers")
"""Packages that are told one by one."""
PYTHONS = SpecifierSet(">=3.11")
"""The same as `requires-python` in pyproject.toml."""
OPTIONAL = {
    "mpi4py": ("ranks started by mpirun over several hosts", "pip install -e '.[mpi]', or mpirun -x MASTER_ADDR=HOST"),
    "megablocks": ("model.experts=megablocks", "README, Models, has the install that works"),
    "gigatoken": ("BPE prepared several times as fast", "pip install -e '.[fast]'"),
    "rjieba": ("whole words of Chinese", "pip install -e '.[words]'"),
    "liger-kernel": ("model.liger=true", "pip install liger-kernel"),
    "flash-attn": ("model.attention=flash_attention_2", "pip install flash-attn --no-build-isolation"),
}
"""Package → what it is for, and how to get it."""


def look_at_versions() -> Iterator[Finding]:
    """The interpreter, every package a run needs, and the demands they make on each other."""
    python = ".".join(map(str, sys.version_info[:3]))
    fits = PYTHONS.contains(python)
    yield Finding(
        name="python",
        state="ok" if fits else "wrong",
        found=f"{python}, {sys.executable}",
        fix="" if fits else f"make the environment with a python {PYTHONS}",
    )
    wanted = _own_requirements()
    missing = [need.name for need in wanted if installed(need.name) is None]
    for name in TRAINING:
        if name not in missing:
            yield Finding(name=name, state="ok", found=str(installed(name)))
    for name in missing:
        yield Finding(name=name, state="wrong", found="not installed", fix=f"pip install -c constraints.txt {name}")
    quarrels = [quarrel for owner in (PROJECT, *TRAINING) for quarrel in _quarrels(owner, wanted)]
    yield from quarrels
    if not quarrels and not missing:
        yield Finding(name="versions", state="ok", found=f"each of {len(wanted)} packages is one that the others take")
    other = other_version()
    if other is not None:
        yield Finding(
            name="deepspeed's keys",
            state="note",
            found=other,
            fix="a key that is new in it is refused, one that is gone is not: install the version in constraints.txt",
        )


def look_at_optional() -> Iterator[Finding]:
    """Packages that only some runs need."""
    for name, (use, fix) in OPTIONAL.items():
        found = installed(name)
        if found is not None:
            yield Finding(name=name, state="ok", found=found)
        else:
            yield Finding(name=name, state="note", found=f"not installed; only for {use}", fix=fix)


def installed(name: str) -> str | None:
    """The version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _own_requirements() -> list[Requirement]:
    """What this project asks for: of the installed package, or, run from a checkout, of its pyproject.toml."""
    try:
        lines = requires(PROJECT) or []
    except PackageNotFoundError:
        path = ROOT / "pyproject.toml"
        lines = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"] if path.is_file() else []
    return _parse(lines)


def _parse(lines: list[str]) -> list[Requirement]:
    """The requirements that hold here; extras, which nobody asked for, are none of them."""
    requirements = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirements.append(requirement)
    return requirements


def _quarrels(owner: str, own: list[Requirement]) -> Iterator[Finding]:
    """What a package demands of another and does not get."""
    if owner == PROJECT:
        wanted, who = own, "this project"
    elif installed(owner) is None:
        return
    else:
        wanted, who = _parse(requires(owner) or []), f"{owner} {installed(owner)}"
    for need in wanted:
        found = installed(need.name)
        if found is None and owner != PROJECT:
            yield Finding(
                name=need.name,
                state="wrong",
                found=f"not installed, and {who} needs it",
                fix=f"pip install -c constraints.txt '{need.name}{need.specifier}'",
            )
        elif found is not None and not need.specifier.contains(found, prereleases=True):
            yield Finding(
                name=need.name,
                state="wrong",
                found=f"{found}, and {who} takes {need.specifier}",
                fix=f"pip install -c constraints.txt '{need.name}{need.specifier}'",
            )
