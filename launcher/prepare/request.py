"""What a build of shards is asked for, and what follows from it before the first record is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.prepare.filters import FilterOptions
from launcher.prepare.part import Part, PartSettings
from launcher.prepare.readers import ReadOptions
from launcher.prepare.split import VALIDATION_SHARE
from launcher.prepare.tokenizer import TokenizerHandle
from launcher.shards.manifest import FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build."""

    corpus: tuple[str, ...]
    """Files, folders, globs, and `hub:` names."""
    tokenizer: Path
    """Tokenizer folder."""
    out: Path
    """Folder to make."""
    read: ReadOptions = field(default_factory=ReadOptions)
    """How records are read."""
    filters: FilterOptions = field(default_factory=FilterOptions)
    """Which of them are kept."""
    dedupe: bool = False
    """Drop documents whose text an earlier one has; reads the corpus twice."""
    validation_share: float = VALIDATION_SHARE
    """Expected share of documents held out."""
    encoder: str = "auto"
    """Program that tokenizes: `auto` takes the fastest that is exact."""
    words: bool = False
    """Mark the tokens that continue a word, for whole-word masking."""
    sentences: bool = False
    """Write a sequence for each sentence, for sentence-pair objectives."""
    workers: int | None = None
    """Processes; without it, one a core. The result does not depend on it."""
    task: int = 0
    """Which of `tasks` this machine is: it builds every `tasks`-th part."""
    tasks: int = 1
    """Machines that build together on one file system; the one that finds all parts finished completes the folder."""
    overwrite: bool = False
    """Replace shards that were made from something else."""
    part_bytes: int | None = None
    """Of the corpus in one part; without it, a 256th, from 4 MiB to 4 GiB."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation_share < 1.0:
            raise UsageError(f"{self.validation_share} is not a share to hold out", "validation_share", "use 0.02")
        if self.out.name in ("", ".."):  # it is built beside its place and renamed
            raise UsageError(f"{str(self.out)!r} names no folder to make", "out", "give the folder's name")
        for name in ("workers", "tasks", "part_bytes"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} is {number}", name, "use 1 or more")
        if not 0 <= self.task < self.tasks:
            raise UsageError(f"there is no task {self.task} of {self.tasks}", "task", "count from 0")

    @property
    def reading(self) -> ReadOptions:
        """How records are read: of tables only the text, where nobody asks for more."""
        return replace(self.read, columns=(self.read.text_field,)) if self.filters.keep is None else self.read

    def decides(self, handle: TokenizerHandle, part_bytes: int) -> dict[str, Any]:
        """Everything but the corpus that decides the shards."""
        return {
            "format": FORMAT_VERSION,
            "tokenizer": handle.info.sha256,
            "read": asdict(self.reading),
            "filters": self.filters.fingerprint(),
            "dedupe": self.dedupe,
            "validation_share": self.validation_share,
            "words": self.words,
            "sentences": self.sentences,
            "part_bytes": part_bytes,
        }

    def settings(self) -> dict[str, Any]:
        """What the manifest tells of them."""
        return {
            "text_field": self.read.text_field,
            "txt": self.read.txt,
            "validation_share": self.validation_share,
            "min_chars": self.filters.min_chars,
            "max_chars": self.filters.max_chars,
            "keep": self.filters.keep,
            "dedupe": self.dedupe,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A build, cut into parts."""

    request: BuildRequest
    """What was asked for."""
    handle: TokenizerHandle
    """The tokenizer."""
    decides: dict[str, Any]
    """Everything but the corpus that decides the shards."""
    settings: PartSettings
    """What all parts have in common."""
    parts: tuple[Part, ...]
    """What each reads."""
    encoder: str
    """The program that tokenizes, and why it is trusted to."""
