"""Where the code that came with a model is run from, and what is left of that."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.config.places import ROOT
from launcher.models import code_copies

CODE = """
from transformers import GPT2Config
from .other import x
class MineConfig(GPT2Config):
    model_type = "mine"
"""
PROGRAM = """
import inspect, sys
from pathlib import Path
from launcher.models.local import read_config
print(inspect.getfile(type(read_config(Path(sys.argv[1]), ["configuration_mine.py", "other.py"]))), flush=True)
sys.stdin.read()
"""


@contextmanager
def process(model: Path, place: Path) -> Iterator[subprocess.Popen[str]]:
    """One that runs a model's code, with temporary files in `place` and its parent's path, until its input ends."""
    packages = place.with_name(f"pretrain-code-{os.uname().nodename}-parent")
    env = os.environ | {"HF_MODULES_CACHE": str(place / "shared"), "TMPDIR": str(place), "PYTHONPATH": str(packages)}
    words = [sys.executable, "-c", PROGRAM, str(model)]
    with subprocess.Popen(words, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        try:
            yield one
        finally:
            one.kill()


def copies_of(one: subprocess.Popen[str]) -> Path:
    """The folder below which its code lies."""
    assert one.stdout is not None
    (folder,) = [path for path in Path(one.stdout.readline().strip()).parents if path.name.startswith("pretrain-code-")]
    return folder


def folders(place: Path) -> set[Path]:
    return {path for path in place.iterdir() if "pretrain-code-" in path.name or path.name == "shared"}


def test_every_process_has_its_own_copies_and_deletes_those_of_one_that_was_killed(tmp_path: Path) -> None:
    model, place = tmp_path / "model", tmp_path / "place"
    model.mkdir()
    place.mkdir()
    (model / "configuration_mine.py").write_text(CODE)
    (model / "other.py").write_text("x = 1\n")
    of_parent = tmp_path / f"pretrain-code-{os.uname().nodename}-parent" / "transformers_modules" / "model"
    of_parent.mkdir(parents=True)
    for folder in (of_parent, of_parent.parent):
        (folder / "__init__.py").touch()
    told = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    (model / "config.json").write_text(json.dumps(told))
    with process(model, place) as killed, process(model, place) as alive:
        of_killed, of_alive = copies_of(killed), copies_of(alive)
        assert folders(place) == {of_killed, of_alive}
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert of_killed.exists()
        with process(model, place) as later:
            of_later = copies_of(later)
            assert folders(place) == {of_alive, of_later}
            later.communicate()
        assert folders(place) == {of_alive}
        alive.communicate()
        assert folders(place) == set()


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a process that is gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"pretrain-code-{os.uname().nodename}-abc"
    folder.mkdir()
    (folder / "lock").touch()
    return folder


def test_what_is_not_known_to_be_left_stays(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 12345)
        code_copies._delete_left()
    assert left.exists(), "somebody else's"
    with (left / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code_copies._delete_left()
    assert left.exists(), "of a process that runs"
    for name in ("pretrain-code-another-host-abc", "pretrain-code-abc", f".{left.name}"):
        elsewhere = left.rename(left.with_name(name))
        code_copies._delete_left()
        assert elsewhere.exists(), "of another host, of an older version, of one that has no lock yet"
        elsewhere.rename(left)
    code_copies._delete_left()
    assert not left.exists()


def test_where_there_are_no_locks_a_process_has_its_copies_where_nobody_takes_them_for_left(
    left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    code_copies._delete_left()
    assert left.exists()
    assert code_copies._locked_folder().name.startswith(".pretrain-code-")
