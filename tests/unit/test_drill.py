"""The parts of a drill that need no run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from launcher.config.loading import check_recipe
from launcher.drill import sabotage
from launcher.drill.drills import cut_shard, flip, truncate
from launcher.drill.life import DrillError, wait_for_nobody, wait_until
from launcher.drill.material import make_shards, recipe_tree
from launcher.drill.sabotage import PHASES, _is_phase

ROOT = Path(__file__).resolve().parents[2]
SAVING = "/runs/x/checkpoints/.saving-00000080"


@pytest.mark.parametrize(
    ("phase", "event", "path"),
    [
        ("writing", "open", f"{SAVING}/rank-00001.safetensors"),
        ("manifest", "open", f"{SAVING}/manifest.json"),
        ("rename", "os.rename", SAVING),
        ("tidying", "shutil.rmtree", "/runs/x/checkpoints/step-00000040"),
    ],
)
def test_each_phase_of_a_save_is_told_from_the_others(phase: str, event: str, path: str) -> None:
    assert [name for name in PHASES if _is_phase(name, event, path)] == [phase]


def run_ordered(kind: str, code: str, rank: str = "1", **fields: object) -> subprocess.CompletedProcess[str]:
    """A Python process that was ordered to do harm to itself."""
    env = {**os.environ, **sabotage.order(kind, rank=1, **fields), "RANK": rank}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


SAVE = """
import os, pathlib
for number in (40, 80):
    saving = pathlib.Path({folder!r}) / f".saving-{{number}}"
    saving.mkdir(parents=True)
    (saving / "rank-00001.safetensors").write_text("x")
    os.rename(saving, saving.with_name(f"step-{{number}}"))
print("done")
"""


def test_a_process_dies_in_the_save_it_was_told_to_die_in(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    done = run_ordered("save", SAVE.format(folder=str(folder)), phase="rename", save=2)
    assert done.returncode == -signal.SIGKILL
    assert {path.name for path in folder.iterdir()} == {"step-40", ".saving-80"}


def test_another_rank_is_left_in_peace(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert run_ordered("save", SAVE.format(folder=str(folder)), "0", phase="rename", save=2).stdout == "done\n"


def test_a_module_is_spoilt_as_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "victim.py").write_text("def losses(engine):\n    return 2.0\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]) if len(sys.argv) > 1 else None\n"
        "from launcher.drill import sabotage\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "sabotage._when_imported('victim', lambda module: setattr(module, 'losses', lambda engine: 3.0))\n"
        "import victim\n"
        "print(victim.losses(None))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "3.0\n", done.stderr


def test_damage_is_of_the_smallest_kind(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(100)))
    flip(file)
    assert sum(a != b for a, b in zip(file.read_bytes(), range(100), strict=True)) == 1
    flip(file)
    assert file.read_bytes() == bytes(range(100))
    truncate(file)
    assert file.stat().st_size == 93


def test_the_recipe_of_a_drill_is_one_that_the_shards_serve(tmp_path: Path) -> None:
    shards = make_shards(tmp_path)
    assert make_shards(tmp_path) == shards  # made once
    recipe = check_recipe(recipe_tree("x", shards, tmp_path, hang_floor_s=5.0), "drill")
    assert (recipe.guards.hang_floor_s, recipe.data.shards) == (5.0, shards)
    assert json.loads((shards / "manifest.json").read_text())["splits"]["train"]["num_tokens"] > 8 * 32 * 20


def test_the_file_a_rank_names_is_found_wherever_the_drill_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = Path("train-00000.bin")  # as with `--out` a relative folder
    data.write_bytes(b"tokens")
    bench, life = Mock(), Mock()
    bench.own_shards.return_value, bench.start.return_value = Path(), life
    life.wait.return_value, life.left_behind.return_value = 75, []
    cut_shard(bench)
    # A rank tells what the kernel has mapped: the whole path.
    bench.expect_clear_end.assert_called_once_with(life, f"can no longer reach {tmp_path / data}: it was cut short")


class Ended:
    """A run that is over and left a process behind."""

    def is_running(self) -> bool:
        return False

    def told(self) -> str:
        return "the last line"

    def left_behind(self) -> list[int]:
        return [os.getpid()]


def test_a_run_that_ends_too_soon_is_told_with_what_it_said() -> None:
    with pytest.raises(DrillError, match="the run never came to this: step 60") as told:
        wait_until(lambda: False, Ended(), "step 60")  # type: ignore[arg-type]
    assert "the last line" in told.value.fix


def test_a_process_left_behind_is_told() -> None:
    with pytest.raises(DrillError, match=f"there still are its processes: {os.getpid()}"):
        wait_for_nobody(Ended(), 0.0)  # type: ignore[arg-type]
