"""Building a folder of shards: read, filter, tokenize in parallel, write; it appears under its name when complete."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from launcher import __version__, units
from launcher.errors import CorpusError, ShardError, UsageError
from launcher.prepare.documents import find_files, read_documents
from launcher.prepare.encode import encode_batches
from launcher.prepare.split import VALIDATION_SHARE, is_held_out
from launcher.prepare.split_writer import SplitWriter
from launcher.prepare.tokenizer import TokenizerHandle, load_tokenizer, save_tokenizer
from launcher.shards.index import token_dtype
from launcher.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Manifest,
    Source,
    checksum,
    read_manifest,
    write_manifest,
)
from launcher.shards.reader import open_split

BATCH_CHARS = 1 << 18
"""Characters of text sent to a worker at once (assumption: large against a message's cost, small against memory)."""
BYTES_PER_WORKER = 8 << 20
"""A process for less is not worth its start, about 0.5 s (assumption); `workers` overrules it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build."""

    corpus: tuple[str, ...]
    """Files, folders, globs."""
    tokenizer: Path
    """Tokenizer folder."""
    out: Path
    """Folder to make."""
    text_field: str = "completion"
    """Field of a record that holds its text."""
    workers: int | None = None
    """Processes that tokenize; without it, one a core. The result does not depend on it."""
    validation_share: float = VALIDATION_SHARE
    """Expected share of documents held out."""
    overwrite: bool = False
    """Replace shards that were made from something else."""
    tokens_per_shard: int = 1 << 30
    """A shard that has reached this many tokens is closed and the next one begun."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation_share < 1.0:
            raise UsageError(f"{self.validation_share} is not a share to hold out", "validation_share", "use 0.02")
        if self.out.name in ("", ".."):  # it is built beside its place and renamed
            raise UsageError(f"{str(self.out)!r} names no folder to make", "out", "give the folder's name")
        for name in ("workers", "tokens_per_shard"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} is {number}", name, "use 1 or more")


def build_shards(request: BuildRequest, console: Console | None = None) -> Manifest:
    """Turn text into shards.

    Args:
        request: What to build.
        console: Where progress is shown; stderr without it.

    Returns:
        The manifest of the folder, built now or found there complete and made from the same.

    Raises:
        CorpusError: A file is missing, a record cannot be read, or nothing is left to train on.
        TokenizerError: The tokenizer cannot be read.
        ShardError: The folder holds something else.
    """
    console = console or Console(stderr=True)
    # A corpus folder may hold the shards made from it.
    inside = request.out.resolve()
    files = [file for file in find_files(request.corpus) if inside not in file.resolve().parents]
    handle = load_tokenizer(request.tokenizer)
    sources = tuple(Source(path=str(file), num_bytes=file.stat().st_size, xxh3=checksum(file)) for file in files)
    fingerprint = _fingerprint(request, sources, handle)
    existing = _existing(request, fingerprint)
    if existing is not None:
        console.print(f"shards     {request.out}: re-used; {describe(existing)}", highlight=False, soft_wrap=True)
        return existing
    with _under_construction(request.out) as folder:
        counts: Counter[str] = Counter({"read": 0, "kept": 0, "empty": 0, "not_text": 0})
        splits = _write_splits(request, files, handle, folder, counts, console)
        save_tokenizer(handle, folder / "tokenizer")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            launcher_version=__version__,
            fingerprint=fingerprint,
            dtype=token_dtype(handle.info.vocab_size).name,
            tokenizer=handle.info,
            splits={name: writer.stats() for name, writer in splits.items()},
            sources=sources,
            filters=dict(counts),
            text_field=request.text_field,
            validation_share=request.validation_share,
        )
        if manifest.splits["train"].num_documents == 0:
            raise CorpusError(
                f"of {counts['read']} records none is left to train on "
                f"({counts['empty']} empty, {counts['not_text']} not text)",
                " ".join(request.corpus),
                "check the text field, or hold out a smaller share",
            )
        write_manifest(folder, manifest)
    console.print(f"shards     {request.out}: {describe(manifest)}", highlight=False, soft_wrap=True)
    return manifest


def describe(manifest: Manifest) -> str:
    """One line for the reader: documents, tokens, what was held out and what was dropped."""
    train, held_out = manifest.splits["train"], manifest.splits["validation"]
    dropped = manifest.filters["read"] - manifest.filters["kept"]
    return (
        f"{train.num_documents} documents, {units.count(train.num_tokens)} tokens ({manifest.dtype}); "
        f"held out {held_out.num_documents} documents, {units.count(held_out.num_tokens)} tokens; "
        f"dropped {dropped} records"
    )


def _fingerprint(request: BuildRequest, sources: tuple[Source, ...], handle: TokenizerHandle) -> str:
    decides = {
        "format": FORMAT_VERSION,
        "sources": [[entry.num_bytes, entry.xxh3] for entry in sources],
        "tokenizer": handle.info.sha256,
        "text_field": request.text_field,
        "validation_share": request.validation_share,
        "tokens_per_shard": request.tokens_per_shard,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _existing(request: BuildRequest, fingerprint: str) -> Manifest | None:
    out = request.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():  # --overwrite replaces shards, never something else
        raise ShardError("there is something else under this name, not shards", str(out), "give another --out")
    if request.overwrite:
        return None
    fix = "give another --out, or --overwrite"
    try:
        manifest = read_manifest(out)
        for split in SPLITS:
            open_split(out, split)
    except ShardError as error:
        raise ShardError(f"the shards here are damaged: {error.what}", error.where, fix) from None
    if manifest.fingerprint != fingerprint:
        raise ShardError(
            "the shards here were made from other text, with another tokenizer or other settings", str(out), fix
        )
    return manifest


@contextmanager
def _under_construction(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends well, and is gone when it does not."""
    out = out.resolve()  # not beside a link, but beside what it points to
    # Another machine's processes cannot be seen from here: its folders on a shared disk are left alone.
    host = socket.gethostname()
    folder = out.with_name(f".{out.name}.building-{host}-{os.getpid()}")
    replaced = out.with_name(f".{out.name}.replaced-{host}-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise ShardError(f"the folder cannot be made: {error.strerror}", str(out), "give another --out") from None
    for left in out.parent.glob(f".{glob.escape(out.name)}.*-*"):
        kind, _, pid = left.name.removeprefix(f".{out.name}.").rpartition("-")
        if (
            kind in (f"building-{host}", f"replaced-{host}") and pid.isdigit() and not _is_alive(int(pid))
        ):  # of a build that was killed
            shutil.rmtree(left, ignore_errors=True)
    try:
        yield folder
        if out.exists():  # a folder cannot be renamed onto a full one; this way OUT is missing for an instant only
            os.replace(out, replaced)
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, and alive
        return True
    return True


def _write_splits(
    request: BuildRequest,
    files: list[Path],
    handle: TokenizerHandle,
    folder: Path,
    counts: Counter[str],
    console: Console,
) -> dict[str, SplitWriter]:
    total_bytes = sum(file.stat().st_size for file in files)
    workers = request.workers or min(len(os.sched_getaffinity(0)), max(1, total_bytes // BYTES_PER_WORKER))
    tokenizer_json = handle.tokenizer.to_str()
    progress = Progress(
        TextColumn("[bold]tokenizing[/]"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TextColumn("{task.fields[documents]} documents"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with (
        SplitWriter(folder, "train", handle.info, request.tokens_per_shard) as train,
        SplitWriter(folder, "validation", handle.info, request.tokens_per_shard) as validation,
        # Closed at once when writing fails, not when the traceback lets go of it.
        closing(encode_batches(_batches(files, request.text_field, counts), tokenizer_json, workers)) as encoding,
        progress,
    ):
        # Text as UTF-8 against the files' bytes: a little less than all of them, JSON being what it is.
        task = progress.add_task("tokenizing", total=total_bytes, documents=0)
        for texts, encoded in encoding:
            for text, tokens in zip(texts, encoded, strict=True):
                (validation if is_held_out(text, request.validation_share) else train).append(tokens, len(text))
            progress.update(task, advance=sum(len(text.encode()) for text in texts), documents=counts["kept"])
        progress.update(task, completed=progress.tasks[task].total)
    return {"train": train, "validation": validation}


def _batches(files: list[Path], text_field: str, counts: Counter[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_chars = 0
    for document in read_documents(files, text_field, counts):
        batch.append(document.text)
        num_chars += len(document.text)
        if num_chars >= BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
