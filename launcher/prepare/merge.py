"""Putting the manifest on top of finished parts: nothing is copied, the shards of the parts are the shards."""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher import __version__
from launcher.errors import CorpusError, RequeueError, ShardError
from launcher.prepare.part import PartFiles, PartRecord
from launcher.prepare.request import Plan
from launcher.prepare.tokenizer import save_tokenizer
from launcher.shards.index import token_dtype
from launcher.shards.manifest import (
    CHECKSUMS,
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Manifest,
    SegmentEntry,
    Source,
    SplitStats,
    complete_folder,
    fingerprint,
    read_manifest,
)
from launcher.shards.verify import check_sizes

_REASONS = ("read", "kept", "empty", "not_text")
_MENDS = {
    "too_short": "lower --min-chars",
    "too_long": "raise --max-chars",
    "rejected": "look at the function of --keep: it was false for them",
}
"""What to do about most records dropped, by reason."""
WAIT_S = 60.0
"""For a process that has all but to look at the files of a folder once more and to rename it (assumption: a second for
every few hundred files on a slow file system)."""


def corpus_fingerprint(decides: dict[str, Any], segmenter: str, parts: Iterable[Sequence[SegmentEntry]]) -> str:
    """Of all that decides the shards: what the user chose, and the bytes of the corpus.

    Args:
        decides: What the user chose.
        segmenter: What cut Chinese into words, where they are marked.
        parts: What was read, part by part.
    """
    decides = {**decides, "segmenter": segmenter} if segmenter else decides
    read = [[[s.source, s.start, s.end, s.num_rows, s.xxh3] for s in part] for part in parts]
    return fingerprint({"decides": decides, "read": read})


def merge(plan: Plan, records: Sequence[PartRecord]) -> Manifest:
    """Complete the folder and give it its name.

    Whoever finds all parts finished does this, several at a time if need be: they write the same bytes, each file at
    once, and one of them gives the folder its name.

    Args:
        plan: The build.
        records: Of every part, in order.

    Raises:
        CorpusError: Nothing is left to train on.
        RequeueError: Another process took the folder to complete it, and has not.
    """
    request, folder, out = plan.request, plan.settings.folder, plan.request.out.resolve()
    counts: Counter[str] = Counter(dict.fromkeys(_REASONS, 0))
    for record in records:
        counts.update(record.counts)
    if not any("train" in record.shards for record in records):
        for place in (folder, plan.settings.records):  # to go on from here would end here again
            shutil.rmtree(place, ignore_errors=True)
        raise _nothing_left(" ".join(request.corpus), counts)
    made_of = corpus_fingerprint(plan.decides, plan.settings.encode.segmenter, [record.segments for record in records])
    try:
        sums, frequencies = _arrays(plan)
        _save_tokenizer(plan)
        manifest = complete_folder(folder, _manifest(plan, records, frequencies, dict(counts), made_of), sums)
        _take_name(folder, manifest, out)
    except FileNotFoundError:  # gone from under this process
        shutil.rmtree(_own_copy(plan), ignore_errors=True)
        with suppress(OSError):  # whoever is at work in it still needs it
            plan.settings.records.rmdir()
        return _completed_by_another(out, made_of)
    for kind in ("building", "records", "replaced", "completing"):  # not .OUT.v2.building-…, which is of OUT.v2
        for left in out.parent.glob(f".{glob.escape(out.name)}.{kind}-*"):
            shutil.rmtree(left, ignore_errors=True)
    return manifest


def _nothing_left(corpus: str, counts: Counter[str]) -> CorpusError:
    if not counts["read"]:
        return CorpusError("there is no record in it", corpus, "give files with text")
    dropped = ", ".join(f"{number} {name}" for name, number in counts.items() if name not in ("read", "kept"))
    most = max((name for name in counts if name not in ("read", "kept")), key=lambda name: counts[name])
    fix = "hold out a smaller share" if counts["kept"] >= counts[most] else _MENDS.get(most, "check the text field")
    return CorpusError(f"of {counts['read']} records none is left to train on ({dropped})", corpus, fix)


def _manifest(
    plan: Plan,
    records: Sequence[PartRecord],
    frequencies: dict[str, NDArray[np.int64]],
    counts: dict[str, int],
    made_of: str,
) -> Manifest:
    request, unk = plan.request, plan.handle.info.special.unk
    return Manifest(
        format_version=FORMAT_VERSION,
        launcher_version=__version__,
        fingerprint=made_of,
        dtype=token_dtype(plan.handle.info.vocab_size).name,
        tokenizer=plan.handle.info,
        encoder=plan.encoder,
        words=request.words,
        sentences=request.sentences,
        splits={name: _split(name, records, frequencies[name], unk) for name in SPLITS},
        sources=tuple(Source(path=source.name, num_bytes=source.num_bytes) for source in plan.settings.sources),
        parts=tuple(record.segments for record in records),
        filters=counts,
        settings=request.settings(),
        segmenter=plan.settings.encode.segmenter,
    )


def _save_tokenizer(plan: Plan) -> None:
    """Put the tokenizer beside the shards, each file at once: another process may be reading them."""
    saving = _own_copy(plan)
    save_tokenizer(plan.handle, saving)
    (plan.settings.folder / "tokenizer").mkdir(exist_ok=True)
    for path in sorted(saving.iterdir()):
        os.replace(path, plan.settings.folder / "tokenizer" / path.name)


def _arrays(plan: Plan) -> tuple[dict[str, NDArray[np.uint64]], dict[str, NDArray[np.int64]]]:
    """Checksums by file, and frequencies of ids by split."""
    sums: dict[str, NDArray[np.uint64]] = {}
    frequencies = {name: np.zeros(plan.handle.info.vocab_size, dtype=np.int64) for name in SPLITS}
    for part in plan.parts:
        with np.load(PartFiles(plan.settings.records, part).arrays) as arrays:
            for key, array in arrays.items():
                kind, _, name = key.partition("/")
                if kind == "sums":
                    sums[name] = array
                else:
                    frequencies[name] += array
    return sums, frequencies


def _split(name: str, records: Sequence[PartRecord], frequencies_V: NDArray[np.int64], unk: int | None) -> SplitStats:
    shards = [record.shards[name] for record in records if name in record.shards]
    return SplitStats(
        num_documents=sum(shard.num_documents for shard in shards),
        num_tokens=sum(shard.num_tokens for shard in shards),
        text_bytes=sum(record.text_bytes[name] for record in records),
        unigram_entropy=entropy(frequencies_V),
        shards=tuple(shards),
        num_unknown=0 if unk is None else int(frequencies_V[unk]),
    )


def entropy(frequencies_V: NDArray[np.int64]) -> float:
    """Shannon entropy of a distribution given by counts, in nats; 0 where nothing was counted.

    Args:
        frequencies_V: How often each id occurs, [V].
    """
    counted = frequencies_V[frequencies_V > 0]
    if not counted.size:
        return 0.0
    shares = counted / counted.sum()
    return float(-(shares * np.log(shares)).sum())


def _own_copy(plan: Plan) -> Path:
    return plan.settings.records / f"tokenizer.{_own_name()}"


def _take_name(folder: Path, manifest: Manifest, out: Path) -> None:
    """Give a complete folder its name; of several processes with the same one does.

    It goes by way of a name that nobody else knows: a file that another process is still writing cannot get into it
    from there on, and whoever finds shards under the name they are to have moves them aside only with others in hand.

    Raises:
        FileNotFoundError: Another process has it.
    """
    key = folder.name.rpartition("-")[2]
    taken = out.with_name(f".{out.name}.completing-{key}-{_own_name()}")
    replaced = out.with_name(f".{out.name}.replaced-{_own_name()}")
    os.replace(folder, taken)
    try:
        _check_whole(taken, manifest)
        _remove_strangers(taken, {entry.name for entry in manifest.files()} | {CHECKSUMS, MANIFEST, "tokenizer"})
        if out.exists():  # a folder cannot be renamed onto a full one: OUT is missing for an instant
            os.replace(out, replaced)
        os.replace(taken, out)
    except BaseException:
        _put_back(replaced, out)
        _put_back(taken, folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _check_whole(taken: Path, manifest: Manifest) -> None:
    try:
        check_sizes(taken, manifest)
    except ShardError as error:  # another took the folder, and a third began a new one under its name
        raise FileNotFoundError(error.what) from None


def _put_back(moved: Path, place: Path) -> None:
    if moved.exists() and not place.exists():
        os.replace(moved, place)


def go_on_completing(folder: Path, out: Path) -> None:
    """Take up again what a process was about to give its name when it was killed.

    Args:
        folder: Where the build would be found otherwise.
        out: The name it was to have.
    """
    key = folder.name.rpartition("-")[2]
    for left in out.parent.glob(f".{glob.escape(out.name)}.completing-{key}-*"):
        if not folder.exists():
            with suppress(FileNotFoundError):  # another process has taken it up, or given it its name
                os.replace(left, folder)


def _completed_by_another(out: Path, made_of: str) -> Manifest:
    """The manifest of the same build, from the process that took the folder from under this one."""
    deadline = time.monotonic() + WAIT_S
    while True:
        with suppress(ShardError):
            manifest = read_manifest(out)
            if manifest.fingerprint == made_of:
                return manifest
        if time.monotonic() > deadline:
            raise RequeueError(
                "another process took the folder to complete it, and has not", str(out), "run the same command again"
            )
        time.sleep(0.1)


def _remove_strangers(folder: Path, known: set[str]) -> None:
    """Delete what a killed process left: the folder is ours, and nobody else's."""
    for path in folder.iterdir():
        if path.name not in known:
            path.unlink(missing_ok=True)


def _own_name() -> str:
    return f"{os.uname().nodename}-{os.getpid()}"
