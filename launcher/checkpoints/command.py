"""The sub-commands of `pretrain checkpoints`: ls, verify, prune, import."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from launcher.checkpoint import folder as layout
from launcher.checkpoint.find import problem_of
from launcher.checkpoint.retention import to_delete, validation_loss, validation_losses
from launcher.config.loading import check_recipe, load_recipe, read_yaml
from launcher.config.recipe import CheckpointConfig
from launcher.errors import EXIT_DONE, EXIT_USER, CheckpointError, DamagedCheckpointError, LauncherError
from launcher.units import size

IDLE_S = 3600.0
"""A save that nothing has been written to for so long is not going on any more: assumption."""


KEPT = {"keep_last": 1, "keep_every": 0, "keep_best": 0}
"""Fields of the recipe that say what stays, with the least number each can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One folder among a run's checkpoints."""

    step: int
    path: str
    bytes: int
    saved_at: str
    """When its last file was written, UTC; empty where that cannot be read."""
    validation_loss: float | None
    """Measured at this very step; None where none was."""
    complete: bool
    """Whether a run can go on from it, as far as a glance tells."""
    state: str
    """`complete`, `damaged` (put aside, or a file has another size), `unfinished` (being saved, or interrupted) or
    `unreadable` (the file system is away, or this program may not or cannot read it)."""


def add_options(command: argparse.ArgumentParser) -> None:
    """The sub-commands and their options."""
    commands = command.add_subparsers(metavar="ls|verify|prune|import", required=True)

    def add(name: str, act: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        added.set_defaults(act=act)
        added.add_argument("run", type=Path, metavar="RUN", help="a run's folder, e.g. runs/law-bert-zh")
        added.add_argument("--json", action="store_true", help="print JSON")
        return added

    add("ls", _ls, "step, size, time and validation loss of every checkpoint")
    verify = add("verify", _verify, "check every byte of every checkpoint; exit code 2 where one is damaged")
    verify.add_argument("--step", type=int, metavar="N", help="of this step only")
    prune = add("prune", _prune, "delete checkpoints that the recipe, or these options, do not keep")
    for field, least in KEPT.items():
        option = f"--{field.replace('_', '-')}"
        told = f"in place of the recipe's checkpoint.{field}"
        prune.add_argument(option, type=partial(_at_least, least), metavar="N", help=told)
    prune.add_argument("--damaged", action="store_true", help="also those that were put aside as damaged")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    told = "make a checkpoint of a run's out of one of DeepSpeed's own (stages 1 to 3, or universal), to go on from"
    import_ = commands.add_parser("import", help=told, description=told, allow_abbrev=False)
    import_.set_defaults(act=_import)
    import_.add_argument("source", type=Path, metavar="DS_FOLDER", help="with `latest` in it, or one global_stepN")
    import_.add_argument("--recipe", required=True, metavar="NAME_OR_PATH", help="of the run that is to go on")
    import_.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. name=taken-over")


def run(options: argparse.Namespace) -> int:
    """Run the sub-command; returns the exit code.

    Raises:
        CheckpointError: The run has no checkpoints, or not the one that was asked for.
    """
    act: Callable[[argparse.Namespace], int] = options.act
    return act(options)


def rows(folder: Path) -> list[Row]:
    """Everything in a run's `checkpoints/`, by step."""
    found = [_row(step, layout.checkpoint_path(folder, step), "complete") for step in layout.complete_steps(folder)]
    found += [_row(step, path, "damaged") for step, path in layout.damaged(folder)]
    found += [_row(step, path, "unfinished") for step, path in layout.unfinished(folder)]
    return sorted((row for row in found if row is not None), key=lambda row: (row.step, row.path))


def _row(step: int, path: Path, state: str) -> Row | None:
    """None for what is there no more: a run that goes on deletes, and gives what it has saved another name."""
    files: list[os.stat_result] = []
    times: list[float] = []
    loss = None
    try:
        files = [file.stat() for file in (path.iterdir() if path.is_dir() else [path])]
        times = [file.st_mtime for file in files] or [path.stat().st_mtime]
        if state != "unfinished":
            loss = validation_loss(path, step)
        if state == "complete":
            layout.glance(path)
    except DamagedCheckpointError:
        state = "damaged"
    except (OSError, LauncherError):
        state = "unreadable"
    if state in ("damaged", "unreadable") and _is_gone(path):
        return None
    return Row(
        step=step,
        path=str(path),
        bytes=sum(file.st_size for file in files),
        saved_at=datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else "",
        validation_loss=loss,
        complete=state == "complete",
        state=state,
    )


def _ls(options: argparse.Namespace) -> int:
    found = rows(_checkpoints(options.run))
    if options.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
        return EXIT_DONE
    print(f"{'step':>10}  {'size':>10}  {'saved (UTC)':<19}  {'validation loss':>15}  state")
    for row in found:
        loss = "" if row.validation_loss is None else f"{row.validation_loss:.4f}"
        saved = row.saved_at.removesuffix("+00:00").replace("T", " ")
        print(f"{row.step:>10}  {size(row.bytes):>10}  {saved:<19}  {loss:>15}  {row.state}")
    return EXIT_DONE


def _verify(options: argparse.Namespace) -> int:
    folder = _checkpoints(options.run)
    aside = layout.damaged(folder)
    told = []
    for step in _steps_asked_for(options.step, folder):
        path = layout.checkpoint_path(folder, step)
        problem = problem_of(path)
        moved = [entry for entry in layout.damaged(folder) if entry not in aside and entry[0] == step]
        if moved:
            path = moved[-1][1]
            problem = f"{problem_of(path) or 'the run found it damaged'}; put aside meanwhile"
        elif problem and step not in _steps_asked_for(options.step, folder):
            continue  # deleted meanwhile by the run, which goes on
        told.append({"step": step, "path": str(path), "problem": problem or None})
        if options.json:
            continue
        if problem:
            print(f"{path}: {problem}", file=sys.stderr)
        else:
            print(f"{path}: every byte is as it was written")
    if options.json:
        print(json.dumps(told, ensure_ascii=False, indent=2))
    return EXIT_USER if any(entry["problem"] for entry in told) else EXIT_DONE


def _steps_asked_for(step: int | None, folder: Path) -> list[int]:
    """The complete checkpoints, or the one of a step.

    Raises:
        CheckpointError: There is none of that step.
    """
    steps = layout.complete_steps(folder)
    if step is None:
        return steps
    if step not in steps:
        have = f"choose one of the steps {', '.join(map(str, steps))}" if steps else "train the run first"
        raise CheckpointError(f"there is no complete checkpoint of step {step}", str(folder), have)
    return [step]


def _prune(options: argparse.Namespace) -> int:
    folder = _checkpoints(options.run)
    given = {name: getattr(options, name) for name in KEPT if getattr(options, name) is not None}
    keep = CheckpointConfig.model_validate({**_kept_by_recipe(options.run).model_dump(), **given})
    steps = to_delete(validation_losses(folder), keep)
    paths = [layout.checkpoint_path(folder, step) for step in steps]
    paths += [path for _, path in layout.unfinished(folder) if _is_idle(path)]
    paths += [path for _, path in layout.damaged(folder)] if options.damaged else []
    freed = 0
    for path in paths:
        num_bytes = _num_bytes(path)
        freed += num_bytes
        if not options.json:
            print(f"{'would delete' if options.dry_run else 'deleted'} {path} ({size(num_bytes)})")
        if not options.dry_run:
            _delete(path)
    if options.json:
        paths_told = [str(path) for path in paths]
        print(json.dumps({"deleted": paths_told, "bytes": freed, "dry_run": options.dry_run}, indent=2))
    elif not paths:
        print("nothing to delete")
    return EXIT_DONE


def _at_least(least: int, text: str) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {least} or more")
    return int(text)


def _import(options: argparse.Namespace) -> int:
    from launcher.checkpoints.takeover import take_over  # with torch

    path = take_over(options.source, load_recipe(options.recipe, options.overrides).recipe)
    print(f"{path}: the run goes on from here")
    return EXIT_DONE


def _is_gone(path: Path) -> bool:
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _num_bytes(path: Path) -> int:
    """Of all its files; of what the run itself is deleting, of none."""
    with suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
    return 0


def _delete(path: Path) -> None:
    if path.is_dir():
        layout.delete(path)
    else:
        path.unlink(missing_ok=True)


def _is_idle(path: Path) -> bool:
    """A run may be writing it: only what has been left alone for long was interrupted."""
    with suppress(FileNotFoundError):
        times = [path.stat().st_mtime, *(file.stat().st_mtime for file in path.glob("*"))]
        return time.time() - max(times) > IDLE_S
    return False


def _kept_by_recipe(run_folder: Path) -> CheckpointConfig:
    path = run_folder / "recipe.yaml"
    return check_recipe(read_yaml(path), str(path)).checkpoint


def _checkpoints(run_folder: Path) -> Path:
    folder = run_folder / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError("there are no checkpoints", str(folder), "give a run's folder, e.g. runs/law-bert-zh")
    return folder
