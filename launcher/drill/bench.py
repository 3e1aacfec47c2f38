"""A drill's run and the undisturbed one it is held against."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.drill.life import DrillError, Life, Starter, wait_for_nobody, wait_until
from launcher.drill.material import make_shards, recipe_tree, write_recipe
from launcher.engine.completion import completed_step
from launcher.engine.ledger import read_ledger
from launcher.engine.records import read_metrics
from launcher.engine.run_lock import HOLDER
from launcher.errors import EXIT_DONE

_CHECKPOINT = re.compile(r"^step-(\d+)$")


class Bench:
    """Starts the runs of one drill and looks at what they left.

    Args:
        name: Of the drill.
        folder: For everything; the undisturbed run in it is shared by all drills.
        start: Starts training.
        config: Name or path of the DeepSpeed JSON.
        num_ranks: Ranks of every start.
        times: How often `kill-rank` kills.
        seed: Chooses its moments.
    """

    def __init__(
        self, name: str, folder: Path, start: Starter, config: str, num_ranks: int, times: int = 1, seed: int = 0
    ) -> None:
        self.folder = folder / name
        self.num_ranks, self.times, self.seed = num_ranks, times, seed
        self._shared, self._start, self._config, self._name = folder, start, config, name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._shards = make_shards(folder / "data")
        self._runs = self.folder / "runs"
        self._num_lives = 0

    @property
    def run_folder(self) -> Path:
        """Of the run that is disturbed."""
        return self._runs / self._name

    def move_to(self, runs: Path) -> None:
        """Keep the runs elsewhere."""
        self._runs = runs

    def own_shards(self) -> Path:
        """A copy of the shards, to be damaged."""
        self._shards = Path(shutil.copytree(self._shards, self.folder / "shards"))
        return self._shards

    def start(self, env: Mapping[str, str] | None = None, name: str = "first", **guards: Any) -> Life:
        """Start the run, or start it again."""
        self._num_lives = len(read_ledger(self.run_folder))
        return self._begin(self._name, self._shards, self._runs, self.folder / name, env or {}, guards)

    def finish(self) -> Life:
        """Start the run again, undisturbed, and hold what it comes to against the run that never was disturbed."""
        life = self.start(name="again")
        code = life.wait()
        wait_for_nobody(life, 60.0)
        self.expect(code == EXIT_DONE, f"started again, it ended with {code}:\n{life.told()[-2000:]}")
        self.expect_steps()
        return life

    def come_to(self, step: int, life: Life) -> None:
        """Wait until this start of the run has come to a step."""

        def is_there() -> bool:
            # What an earlier start left in the log is removed before this one tells that it takes steps.
            lives = read_ledger(self.run_folder)
            return len(lives) > self._num_lives and lives[-1].first_step >= 0 and self.last_step() >= step

        wait_until(is_there, life, f"step {step}")

    def come_to_ranks(self, life: Life) -> None:
        """Wait until all ranks run; what they are at then is anybody's guess."""

        def run() -> bool:
            try:
                return all(life.rank(number) for number in range(self.num_ranks))
            except DrillError:
                return False

        wait_until(run, life, "its ranks")

    def come_to_lock(self, life: Life) -> None:
        """Wait until the run holds its folder."""
        wait_until((self.run_folder / HOLDER).exists, life, "the lock of its folder")

    def last_step(self) -> int:
        """The last step in the log."""
        return max((line["step"] for line in _steps(self.events())), default=0)

    def saved_step(self) -> int:
        """Step of the newest complete checkpoint."""
        folder = self.run_folder / "checkpoints"
        names = [path.name for path in folder.iterdir() if (path / "manifest.json").exists()] if folder.exists() else []
        return max((int(match[1]) for name in names if (match := _CHECKPOINT.match(name))), default=0)

    def checkpoint(self, step: int) -> Path:
        """A checkpoint's folder."""
        return self.run_folder / "checkpoints" / f"step-{step:08d}"

    def is_complete(self) -> bool:
        """Whether the run says that it is done."""
        return completed_step(self.run_folder) is not None

    def events(self) -> list[dict[str, Any]]:
        """The lines of the run's log."""
        return _lines(self.run_folder)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Hold a promise.

        Raises:
            DrillError: It did not hold.
        """
        if not holds:
            raise DrillError(otherwise, str(self.folder))

    def expect_clear_end(self, life: Life, words: str) -> None:
        """Whoever reads the last line of the ranks knows what happened."""
        told = life.told()
        self.expect("Traceback" not in told, f"it ended with a traceback:\n{told[-3000:]}")
        self.expect(words in told, f"{words!r} was not said:\n{told[-2000:]}")

    def expect_steps(self, same_losses_before: int | None = None) -> None:
        """Every step once, with the samples, losses and norms of the undisturbed run, and the run marked complete."""
        whole, ours = _steps(_lines(self._undisturbed())), _steps(self.events())
        self.expect([step["step"] for step in ours] == list(range(1, len(whole) + 1)), "a step is missing or twice")
        for one, other in zip(whole, ours, strict=True):
            step = one["step"]
            self.expect(one["batch_digest"] == other["batch_digest"], f"step {step} has other samples")
            if same_losses_before is None or step < same_losses_before:
                same = (one["loss"], one["grad_norm"]) == (other["loss"], other["grad_norm"])
                self.expect(same, f"step {step}: loss {other['loss']}, undisturbed {one['loss']}")
        self.expect(self.is_complete(), "the run is not marked complete")

    def _undisturbed(self) -> Path:
        """The folder of the run that nobody disturbs, made the first time it is asked for."""
        key = f"undisturbed-{Path(self._config).stem}-{self.num_ranks}"
        runs = self._shared / "runs"
        if completed_step(runs / key) is None:
            shards = make_shards(self._shared / "data")
            life = self._begin(key, shards, runs, self._shared / key, {}, {})
            code = life.wait()
            wait_for_nobody(life, 60.0)
            self.expect(code == EXIT_DONE, f"the undisturbed run ended with {code}:\n{life.told()[-2000:]}")
        return runs / key

    def _begin(
        self, name: str, shards: Path, runs: Path, out: Path, env: Mapping[str, str], guards: Mapping[str, Any]
    ) -> Life:
        recipe = write_recipe(out.with_suffix(".yaml"), recipe_tree(name, shards, runs, **guards))
        return self._start(["--ds_config", self._config, "--recipe", str(recipe)], env, out)


def _lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    try:
        return read_metrics(path)
    except (FileNotFoundError, json.JSONDecodeError):
        return []


def _steps(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "batch_digest" in line and "event" not in line]
