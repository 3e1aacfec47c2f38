"""Putting the manifest on top of finished parts: nothing is copied, the shards of the parts are the shards."""

from __future__ import annotations

import glob
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher import __version__
from launcher.errors import CorpusError, ShardError
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

_REASONS = ("read", "kept", "empty", "not_text")


def corpus_fingerprint(decides: dict[str, Any], parts: Iterable[Sequence[SegmentEntry]]) -> str:
    """Of all that decides the shards: what the user chose, and the bytes of the corpus.

    Args:
        decides: What the user chose.
        parts: What was read, part by part.
    """
    read = [[[s.source, s.start, s.end, s.num_rows, s.xxh3] for s in part] for part in parts]
    return fingerprint({"decides": decides, "read": read})


def merge(plan: Plan, records: Sequence[PartRecord]) -> Manifest:
    """Complete the folder and give it its name.

    Whoever finds all parts finished does this, two at a time if need be: they write the same bytes, and the folder
    takes its name once.

    Args:
        plan: The build.
        records: Of every part, in order.

    Raises:
        CorpusError: Nothing is left to train on.
        ShardError: The folder cannot take its name.
    """
    request, folder = plan.request, plan.settings.folder
    sums, frequencies = _arrays(plan)
    counts: Counter[str] = Counter(dict.fromkeys(_REASONS, 0))
    for record in records:
        counts.update(record.counts)
    unk = plan.handle.info.special.unk
    splits = {name: _split(name, records, frequencies[name], unk) for name in SPLITS}
    if splits["train"].num_documents == 0:
        for place in (folder, plan.settings.records):  # to go on from here would end here again
            shutil.rmtree(place, ignore_errors=True)
        if not counts["read"]:
            raise CorpusError("there is no record in it", " ".join(request.corpus), "give files with text")
        dropped = ", ".join(f"{number} {name}" for name, number in counts.items() if name not in ("read", "kept"))
        raise CorpusError(
            f"of {counts['read']} records none is left to train on ({dropped})",
            " ".join(request.corpus),
            "check the text field, or hold out a smaller share",
        )
    names = [entry.name for split in splits.values() for shard in split.shards for entry in shard.files]
    try:
        save_tokenizer(plan.handle, folder / "tokenizer")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            launcher_version=__version__,
            fingerprint=corpus_fingerprint(plan.decides, [record.segments for record in records]),
            dtype=token_dtype(plan.handle.info.vocab_size).name,
            tokenizer=plan.handle.info,
            encoder=plan.encoder,
            words=request.words,
            sentences=request.sentences,
            splits=splits,
            sources=tuple(Source(path=source.name, num_bytes=source.num_bytes) for source in plan.settings.sources),
            parts=tuple(record.segments for record in records),
            filters=dict(counts),
            settings=request.settings(),
        )
        _remove_strangers(folder, {*names, CHECKSUMS, MANIFEST, "tokenizer"})
        manifest = complete_folder(folder, manifest, sums)
        _take_name(folder, request.out.resolve())
    except OSError as error:
        manifest = _merged_by_another(request.out, error)
    out = request.out.resolve()
    for left in out.parent.glob(f".{glob.escape(out.name)}.*-*"):
        if left.name.split(".")[-1].split("-")[0] in ("building", "records", "replaced"):
            shutil.rmtree(left, ignore_errors=True)
    return manifest


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


def _remove_strangers(folder: Path, known: set[str]) -> None:
    """Delete what a killed process left: the folder is ours, and nobody else's."""
    for path in folder.iterdir():
        if path.name not in known:
            path.unlink(missing_ok=True)


def _take_name(folder: Path, out: Path) -> None:
    if not out.exists():
        os.replace(folder, out)
        return
    # A folder cannot be renamed onto a full one; this way OUT is missing for an instant only.
    replaced = out.with_name(f".{out.name}.replaced-{os.uname().nodename}-{os.getpid()}")
    os.replace(out, replaced)
    os.replace(folder, out)
    shutil.rmtree(replaced, ignore_errors=True)


def _merged_by_another(out: Path, error: OSError) -> Manifest:
    try:
        return read_manifest(out)
    except ShardError:
        raise ShardError(
            f"the folder cannot be completed: {error.strerror}", str(error.filename or out), "run the command again"
        ) from None
