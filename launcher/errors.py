"""Every error this program raises on purpose, and the exit code it ends with.

    LauncherError               1   a fault of ours
    ├── UserError               2   something the user can mend
    │   ├── UsageError              a command line that cannot be understood
    │   ├── RecipeError             a recipe, a field of it, or an override
    │   ├── BatchShapeError         a global batch that cannot be cut into passes
    │   ├── MemoryShortError        a batch that does not fit into memory
    │   ├── DsConfigError           a DeepSpeed JSON
    │   ├── CorpusError             text that cannot be read as documents
    │   ├── TokenizerError          a tokenizer folder, or one that does not belong to the shards
    │   ├── ShardError              shards that are missing, damaged or of another build
    │   ├── ObjectiveError          an objective the tokenizer, the model or the length cannot serve
    │   ├── ModelError              a model configuration
    │   ├── CheckpointError         a checkpoint that cannot be loaded, or belongs to another run
    │   │   └── DamagedCheckpointError  its bytes are not those that were written
    │   ├── DivergedError           a run that comes to no good, whatever is left out of its data
    │   ├── FruitlessError          a run that was started again and again and took no step
    │   ├── RunInUseError           a run's folder that another job is at work in
    │   ├── ClusterError            hosts, ranks and rendezvous
    │   ├── ScaleError              a scaling test whose runs make no table
    │   └── MissingDependencyError  a package or a compiler that the run needs
    └── RequeueError            75  stopped; the same command again goes on (EX_TEMPFAIL)

An error says what happened, where, and what to do. It is raised once and printed once, without a traceback when
it is the user's.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_OURS = 1
EXIT_USER = 2
EXIT_REQUEUE = 75
EXIT_INTERRUPTED = 130


class LauncherError(Exception):
    """Something this program knows how to explain.

    Args:
        what: What happened, one sentence without a full stop.
        where: The file, field or line it happened in.
        fix: What to do about it.
    """

    exit_code = EXIT_OURS

    # Positional strings with defaults: an exception with keyword-only arguments cannot be unpickled and comes out of a
    # worker process as a RuntimeError.
    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [f"{type(self).__name__}: {self.what}"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def on_one_line(self) -> str:
        """Where and what, without the fix."""
        return f"{self.where}: {self.what}" if self.where else self.what


class UserError(LauncherError):
    """Something the user can mend."""

    exit_code = EXIT_USER


class UsageError(UserError):
    """A command line that cannot be understood."""


class RecipeError(UserError):
    """A recipe that cannot be read, an unknown field, or a value that does not fit."""


class BatchShapeError(UserError):
    """A global batch that cannot be cut into equal passes over the ranks."""


class MemoryShortError(UserError):
    """A model and a batch that do not fit into the memory of a device or a host."""


class DsConfigError(UserError):
    """A DeepSpeed configuration that does not exist, cannot be read, or contradicts the recipe."""


class CorpusError(UserError):
    """Text that is missing or cannot be read as documents."""


class TokenizerError(UserError):
    """A tokenizer folder that cannot be read, or one that does not belong to the shards."""


class ShardError(UserError):
    """Token shards that are missing, damaged, or made by another build."""


class ObjectiveError(UserError):
    """An objective that the tokenizer, the model or the sequence length cannot serve."""


class ModelError(UserError):
    """A model configuration that does not exist or does not fit the recipe."""


class CheckpointError(UserError):
    """A checkpoint that cannot be loaded, or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes are not those that were written; the one before it may be sound."""


class DivergedError(UserError):
    """A run that comes to no good, whatever is left out of its data."""


class FruitlessError(UserError):
    """A run that was started again and again and took no step."""


class RunInUseError(UserError):
    """A run's folder that another job is at work in."""


class ClusterError(UserError):
    """Hosts, ranks or a rendezvous that cannot be worked out."""


class ScaleError(UserError):
    """A scaling test whose runs make no table."""


class MissingDependencyError(UserError):
    """A package, library or compiler that this run needs and this machine lacks."""


class RequeueError(LauncherError):
    """Stopped on the way; the same command again goes on from the last checkpoint."""

    exit_code = EXIT_REQUEUE


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of `known` that `name` was probably meant to be, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A `fix` for a misspelled `name`: the nearest of `known`, or the whole list."""
    known = sorted(known)
    match = nearest(name, known)
    return f"did you mean {match!r}?" if match else f"use one of: {', '.join(known)}"
