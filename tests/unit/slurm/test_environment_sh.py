"""`slurm/environment.sh`: which python the ranks get."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from slurm_cluster import ROOT


def python_in(folder: Path) -> Path:
    """A folder with a command `python`."""
    folder.mkdir(parents=True)
    (folder / "python").write_text("#!/bin/sh\n")
    (folder / "python").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("prologue", "chosen", "reason"),
    [
        ("", "venv", "nothing was loaded"),
        ("PATH={module}:$PATH", "venv", "a module brings a python of its own: the project's comes after it"),
        ("PATH={module}:$PATH; VIRTUAL_ENV={module}", "module", "the prologue activated an environment"),
        ("PATH={module}:$PATH; CONDA_PREFIX={module}", "module", "likewise, of conda"),
        (": $not_set; PATH={module}:$PATH", "venv", "modules read variables that nobody set"),
        ("cd /; PATH={module}:$PATH", "venv", "and may end in another folder"),
    ],
)
def test_the_projects_environment_comes_after_modules_and_gives_way_to_one_that_was_chosen(
    prologue: str, chosen: str, reason: str, tmp_path: Path
) -> None:
    root = tmp_path / "my project"
    places = {"venv": python_in(root / ".venv" / "bin"), "module": python_in(tmp_path / "modules")}
    # As `python -m venv` writes it: it puts itself first, once, and takes an older one off.
    (root / ".venv" / "bin" / "activate").write_text(f'VIRTUAL_ENV="{root}/.venv"; PATH="$VIRTUAL_ENV/bin:$PATH"\n')
    (root / "mine.sh").write_text(prologue.format(module=places["module"]))
    script = 'set -uo pipefail; root=$PWD prologue=mine.sh; . "$0"; command -v python; pwd'
    done = subprocess.run(
        ["bash", "-c", script, str(ROOT / "slurm" / "environment.sh")],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": "of-the-submitting-shell", "CONDA_PREFIX": "/base"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(places[chosen] / "python"), str(root)], reason
