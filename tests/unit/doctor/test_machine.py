"""`pretrain doctor` tells what this machine has, what is missing, what that stops, and what to do."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from launcher import cli
from launcher.doctor import devices, machine, versions
from launcher.doctor.devices import Device, Devices, look_at_devices
from launcher.doctor.findings import Finding
from launcher.doctor.machine import (
    look_at_environment,
    look_at_hub,
    look_at_limits,
    look_at_ops,
    look_at_programs,
    look_at_reading,
)
from launcher.doctor.versions import look_at_versions
from launcher.shards.gather import leave_all


def named(findings: object, name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]  # type: ignore[attr-defined]
    return found  # type: ignore[no-any-return]


def test_a_machine_that_passes_the_tests_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("ok") and "deepspeed" in line]
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] is True
    assert {"name", "state", "found", "fix"} == told["findings"][0].keys()


def test_it_imports_nothing_that_takes_seconds() -> None:
    program = (
        "import sys; from launcher import cli; cli.main(['doctor', 'law-bert-zh', '--ds_config', 'zero3.json']); "
        "assert not {'torch', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules), list(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_stops_every_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def version(name: str) -> str:
        if name == "deepspeed":
            raise PackageNotFoundError(name)
        return "99"

    monkeypatch.setattr(versions, "version", version)
    assert cli.main(["doctor"]) == 2
    assert "pip install -c constraints.txt deepspeed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "version", "told", "reason"),
    [
        ("torch", "2.3.0", "2.3.0, and this project takes >=2.11", "older than this project takes"),
        ("tokenizers", "0.99.0", "0.99.0, and transformers", "newer than another package takes"),
    ],
)
def test_versions_that_do_not_fit_are_told_with_who_wants_what(
    name: str, version: str, told: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = versions.version
    monkeypatch.setattr(versions, "version", lambda asked: version if asked == name else true(asked))
    wrong = [finding for finding in look_at_versions() if finding.state == "wrong"]
    assert [finding for finding in wrong if finding.name == name and told in finding.found], reason
    assert all(f"'{name}" in finding.fix for finding in wrong if finding.name == name)


def test_a_python_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.sys, "version_info", (3, 9, 1))
    assert named(look_at_versions(), "python").state == "wrong"


def test_what_deepspeed_compiles_is_told_before_it_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert named(look_at_ops(env), "cpu_adam").fix == "apt-get install g++"  # ninja comes with DeepSpeed
    assert "not here; only for runs started through Slurm" in named(look_at_programs(), "srun").found
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/bin/{name}")
    assert "compiled at the first use" in named(look_at_ops(env), "cpu_adam").found
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
    assert named(look_at_ops(env), "cpu_adam").state == "ok"
    (tmp_path / "cpu_adam" / "lock").touch()
    assert named(look_at_ops(env), "cpu_adam").fix == f"if none is running: rm {tmp_path}/cpu_adam/lock"


def test_who_installed_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.doctor.machine.compiled", None)
    found = named(look_at_reading(), "reading of shards")
    assert (found.state, found.fix) == ("note", "apt-get install gcc python3-dev, then pip install -e . again")
    monkeypatch.setattr("launcher.doctor.machine.compiled", leave_all)
    assert named(look_at_reading(), "reading of shards").state == "ok"


H100 = Device(name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30, capability=9.0)
V100 = Device(name="Tesla V100-SXM2-32GB", memory_bytes=32 << 30, capability=7.0)


@pytest.mark.parametrize(
    ("device", "driver", "cuda", "state", "told"),
    [
        (H100, (13, 0), "13.0", "ok", "the driver runs it"),
        (H100, (12, 8), "12.9", "ok", "the driver runs it"),  # minor versions of one major are compatible
        (H100, (12, 4), "13.0", "wrong", "the driver runs 12.4 at most"),
        (H100, (13, 0), None, "wrong", "a build without CUDA"),
        (V100, (13, 0), "13.0", "wrong", "no code for Tesla V100-SXM2-32GB"),
    ],
)
def test_torchs_build_is_held_against_driver_and_devices(
    device: Device, driver: tuple[int, int], cuda: str | None, state: str, told: str
) -> None:
    findings = list(look_at_devices(Devices(devices=(device,), driver_cuda=driver), cuda))
    fit = named(findings, "torch's CUDA")
    assert fit.state == state
    assert told in fit.found
    assert (fit.fix != "") == (state == "wrong")
    assert ("no bf16" in named(findings, "cuda:0").found) == (device is V100)


def test_a_driver_is_asked_by_its_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    header = "| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: 12.4 |"
    program.write_text(f'#!/bin/sh\n[ $# -gt 0 ] && echo "NVIDIA A100-SXM4-80GB, 81920, 8.0" || echo "{header}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = devices.ask_driver()
    assert found.devices == (Device(name="NVIDIA A100-SXM4-80GB", memory_bytes=81920 << 20, capability=8.0),)
    assert found.driver_cuda == (12, 4)
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    assert named(look_at_devices(devices.ask_driver(), "12.4"), "accelerator").found == (
        "nvidia-smi fails: Failed to initialize NVML: Driver/library version mismatch"
    )
    program.write_text("#!/bin/sh\nsleep 30\n")
    monkeypatch.setattr(devices, "PATIENCE_S", 0.1)
    assert "does not answer" in devices.ask_driver().trouble


def test_few_open_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 8192))
    found = named(look_at_limits(), "open files")
    assert (found.state, found.fix) == ("note", "ulimit -n 8192 before the run is started")


def test_the_environment_is_told_by_name_and_never_by_value(tmp_path: Path) -> None:
    env = {"HF_TOKEN": "hf_secret", "NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "eth0", "EDITOR": "vi"}
    found = named(look_at_environment(env, tmp_path, tmp_path), "environment")
    assert found.found.endswith(": GLOO_SOCKET_IFNAME, HF_TOKEN")
    assert "secret" not in f"{found}"
    (tmp_path / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth0\nHF_TOKEN=x\n")
    assert named(look_at_environment(env, tmp_path, tmp_path), "environment").state == "ok"


def test_the_hub_is_only_asked_for_what_a_recipe_names() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"}
        server.settimeout(0.2)
        assert named(look_at_hub(env), "hub").state == "ok"
        with pytest.raises(TimeoutError):
            server.accept()
        assert named(look_at_hub(env, ("hub:a/b",)), "hub").found.startswith("127.0.0.1 answers")
    unreachable = named(look_at_hub(env, ("hub:a/b",)), "hub")
    assert (unreachable.state, "HF_ENDPOINT to a mirror" in unreachable.fix) == ("note", True)
    for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        refused = named(look_at_hub({key: "1"}, ("hub:a/b",)), "hub")
        assert (refused.state, f"unset {key}" in refused.fix) == ("wrong", True)
