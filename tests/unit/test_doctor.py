"""`pretrain doctor` tells what is there, what is missing, and what that stops."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from launcher import cli, doctor


def finding(name: str) -> doctor.Finding:
    (found,) = [finding for finding in doctor.examine() if finding.name == name]
    return found


def test_a_machine_that_passes_the_tests_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("ok") and "deepspeed" in line]
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] is True
    assert {"name", "state", "found"} == told["findings"][0].keys()


def test_a_missing_package_stops_every_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def version(name: str) -> str:
        if name == "deepspeed":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor, "version", version)
    assert cli.main(["doctor"]) == 2
    assert "pip install deepspeed" in capsys.readouterr().out


def test_what_deepspeed_compiles_is_told_before_it_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert finding("cpu_adam").state == "note"
    assert "apt-get install g++ ninja-build" in finding("cpu_adam").found
    assert "not here; runs started through Slurm" in finding("srun").found
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")
    assert "compiled at the first use" in finding("cpu_adam").found
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
    assert finding("cpu_adam").state == "ok"
    (tmp_path / "cpu_adam" / "lock").touch()
    assert "a killed build left" in finding("cpu_adam").found
