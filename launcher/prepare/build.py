"""Building a folder of shards: cut the corpus into parts, let processes or machines turn them into shards, put the
manifest on top. A part that is finished stays finished, whatever is killed; the folder appears under its name when all
of them are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from rich.console import Console

from launcher import units
from launcher.errors import ShardError, TokenizerError
from launcher.prepare.dedupe import find_duplicates
from launcher.prepare.encoders import EncodeOptions
from launcher.prepare.hub import without_revision
from launcher.prepare.merge import corpus_fingerprint, go_on_completing, merge
from launcher.prepare.parity import Choice, choose_encoder
from launcher.prepare.part import (
    Part,
    PartFiles,
    PartRecord,
    PartSettings,
    build_part,
    hash_part,
    part_key,
    read_record,
    replacing,
)
from launcher.prepare.pool import Workers
from launcher.prepare.quality import LOUD_FROM, cure_of, unknown_characters, warn_unknown
from launcher.prepare.readers import SegmentReader
from launcher.prepare.request import BuildRequest, Plan
from launcher.prepare.segmenters import claim, preferred_segmenter, segmenter_of
from launcher.prepare.sources import Segment, SourceFile, cut, find_sources
from launcher.prepare.texts import texts_of
from launcher.prepare.tokenizer import TokenizerHandle, load_tokenizer, require_same_ids, require_unknown
from launcher.shards.manifest import MANIFEST, SPLITS, Manifest, SegmentEntry, fingerprint, read_manifest
from launcher.shards.reader import Split

MIN_PART_BYTES, MAX_PART_BYTES, NUM_PARTS = 4 << 20, 4 << 30, 256
"""A part is a 256th of the corpus, within bounds: small enough to lose little when killed and to keep all cores busy to
the end, large enough that a terabyte is some hundred shards (assumption)."""
BYTES_PER_WORKER = 8 << 20
"""A process for less is not worth its start, about 0.5 s (assumption); `workers` overrules it."""
FAST_FROM = 32 << 20
"""Below it the reference takes less than the search for a faster encoder (measured: 2.5 MB/s; the search takes 2 s)."""
SAMPLE_SHARE, SAMPLE_DOCUMENTS, MAX_SAMPLE_BYTES, SAMPLE_PLACES = 0.01, 200, 32 << 20, 16
"""Of the corpus, held against the reference: a share, at least so many documents, at most so many bytes; from so many
places of it."""


LOOK_AT = 500
"""Documents in which to look for what is unknown."""


def build_shards(request: BuildRequest, console: Console | None = None) -> Manifest | None:
    """Turn text into shards.

    Args:
        request: What to build.
        console: Where progress is shown; stderr without it.

    Returns:
        The manifest of the folder, built now or found there complete and made from the same; None where other tasks
        have parts left to build.

    Raises:
        CorpusError: A file is missing, a record cannot be read, or nothing is left to train on.
        TokenizerError: The tokenizer cannot be read, or the encoder asked for is not exact.
        ShardError: The folder holds something else.
        RequeueError: A hub has too much to do, or was lost on the way.
    """
    console = console or Console(stderr=True, markup=False)
    # A corpus folder may hold the shards made from it.
    sources = tuple(find_sources(request.corpus, inside=request.out.resolve()))
    handle = load_tokenizer(request.tokenizer)
    require_unknown(handle, str(request.tokenizer))
    require_same_ids(handle, str(request.tokenizer))
    total_bytes = sum(source.num_bytes for source in sources)
    part_bytes = request.part_bytes or min(max(total_bytes // NUM_PARTS, MIN_PART_BYTES), MAX_PART_BYTES)
    decides = request.decides(handle, part_bytes)
    existing = _existing(request, decides, sources)
    if existing is not None:
        return _used_again(request, existing, console)
    segments = cut(sources, part_bytes, request.read.txt)
    with Workers(_num_workers(request, total_bytes, len(segments))) as workers:  # they start while the gate is asked
        choice = _choose(request, handle, sources, segments)
        if request.encoder != "auto" or not _is_small(sources):  # there was something to choose
            console.print(f"encoder    {choice.reason}", highlight=False, soft_wrap=True)
        plan = _plan(request, handle, sources, decides, segments, choice)
        is_done = not request.overwrite and _completed_meanwhile(plan)
        records = [] if is_done else _build(plan, workers, console)
    if is_done:
        return build_shards(request, console)
    if len(records) < len(plan.parts):
        told = f"{len(records)} of {len(plan.parts)} parts are built; the task that builds the last one completes it"
        strangers = _built_otherwise(plan)
        if strangers:  # nobody would complete it, and all tasks end well
            told += (
                f"; {strangers} of the others are of another text or encoder than here ({choice.name} {choice.version})"
            )
        console.print(f"shards     {request.out}: {told}", highlight=False, soft_wrap=True)
        return None
    manifest = merge(plan, records)
    console.print(f"shards     {request.out}: {describe(manifest)}", highlight=False, soft_wrap=True)
    _warn_of_unknown(plan, manifest, console)
    return manifest


def _used_again(request: BuildRequest, existing: Manifest, console: Console) -> Manifest:
    console.print(f"shards     {request.out}: re-used; {describe(existing)}", highlight=False, soft_wrap=True)
    return existing


def describe(manifest: Manifest) -> str:
    """One line for the reader: documents, tokens, what was held out and what was dropped."""
    train, held_out = manifest.splits["train"], manifest.splits["validation"]
    dropped = {name: number for name, number in manifest.filters.items() if name not in ("read", "kept") and number}
    reasons = f" ({', '.join(f'{number} {name}' for name, number in dropped.items())})" if dropped else ""
    return (
        f"{train.num_documents} documents, {units.count(train.num_tokens)} tokens ({manifest.dtype}); "
        f"held out {held_out.num_documents} documents, {units.count(held_out.num_tokens)} tokens; "
        f"dropped {sum(dropped.values())} records{reasons}"
    )


def _warn_of_unknown(plan: Plan, manifest: Manifest, console: Console) -> None:
    """Say loudly when the tokenizer does not know the text."""
    train = manifest.splits["train"]
    share = train.num_unknown / train.num_tokens
    if share <= LOUD_FROM:
        return
    settings = plan.settings
    texts = texts_of(settings.sources, plan.parts[0].segments, settings.read, settings.filters)
    lost = unknown_characters(plan.handle, islice(texts, LOOK_AT))
    warning = warn_unknown(plan.handle, share, lost, cure_of(plan.handle, lost))
    console.print(warning, style="bold red", highlight=False, soft_wrap=True)


def _existing(request: BuildRequest, decides: dict[str, Any], sources: Sequence[SourceFile]) -> Manifest | None:
    """The shards that are there already, if they are what is asked for."""
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
            Split(out, split, manifest)
    except ShardError as error:
        raise ShardError(f"the shards here are damaged: {error.what}", error.where, fix) from None
    named = [(without_revision(source.path), source.num_bytes) for source in manifest.sources]
    if [(without_revision(source.name), source.num_bytes) for source in sources] == named:
        found = corpus_fingerprint(decides, manifest.segmenter, _read_again(request, sources, manifest))
        if found == manifest.fingerprint:
            return manifest
    raise ShardError(
        "the shards here were made from other text, with another tokenizer or other settings", str(out), fix
    )


def _read_again(
    request: BuildRequest, sources: Sequence[SourceFile], manifest: Manifest
) -> Iterator[tuple[SegmentEntry, ...]]:
    """What the segments of a corpus are now that they were once."""
    for part in manifest.parts:
        found = []
        for entry in part:
            segment = Segment(source=entry.source, start=entry.start, end=entry.end)
            with SegmentReader(sources[entry.source], segment, request.reading) as reader:
                reader.skim()
                found.append(replace(entry, xxh3=reader.xxh3))
        yield tuple(found)


def _choose(
    request: BuildRequest,
    handle: TokenizerHandle,
    sources: Sequence[SourceFile],
    segments: Sequence[tuple[Segment, ...]],
) -> Choice:
    """The program that tokenizes."""
    wanted, why = request.encoder, ""
    if request.words or request.sentences:
        option = "--words" if request.words else "--sentences"
        why = f"it alone tells where in the text a token lies, as {option} needs"
        if wanted not in ("auto", "tokenizers"):
            fix = f"leave --encoder to auto, or {option} out"
            raise TokenizerError(f"{wanted} does not tell where in the text a token lies", "--encoder", fix)
        wanted = "tokenizers"
    elif wanted == "auto" and _is_small(sources):
        wanted, why = "tokenizers", "it is through with so little text before a faster one is found"
    sample = partial(_sample, request, sources, segments)
    choice = choose_encoder(handle.json, handle.info.sha256, sample, wanted)
    return replace(choice, reason=f"{choice.reason}: {why}", record=f"{choice.record}: {why}") if why else choice


def _is_small(sources: Sequence[SourceFile]) -> bool:
    """Whether the reference is through before a faster encoder is found."""
    return sum(source.num_bytes for source in sources) < FAST_FROM and all(source.is_measured for source in sources)


def _sample(
    request: BuildRequest, sources: Sequence[SourceFile], segments: Sequence[tuple[Segment, ...]]
) -> Iterator[str]:
    """Texts from all over the corpus, and from elsewhere in it where these places have too few."""
    total_bytes = sum(source.num_bytes for source in sources)
    budget = min(max(int(total_bytes * SAMPLE_SHARE), 1), MAX_SAMPLE_BYTES)
    places = sorted({len(segments) * place // SAMPLE_PLACES for place in range(SAMPLE_PLACES)})
    others = (number for number in range(len(segments)) if number not in places)
    missing = SAMPLE_DOCUMENTS
    for nth, place in enumerate([*places, *others]):
        places_left = len(places) - nth
        if places_left <= 0 and missing <= 0:
            return
        wanted = -(-missing // max(places_left, 1))
        left = budget // len(places) if places_left > 0 else 0
        for documents, text in enumerate(texts_of(sources, segments[place], request.reading, request.filters), 1):
            yield text
            missing, left = missing - 1, left - len(text.encode())
            if documents >= wanted and left <= 0:
                break


def _plan(
    request: BuildRequest,
    handle: TokenizerHandle,
    sources: tuple[SourceFile, ...],
    decides: dict[str, Any],
    segments: Sequence[tuple[Segment, ...]],
    choice: Choice,
) -> Plan:
    """Make the places where the build goes on or begins, and name its parts."""
    out = request.out.resolve()  # not beside a link, but beside what it points to
    key = fingerprint(decides)[:12]
    folder, records = (out.with_name(f".{out.name}.{what}-{key}") for what in ("building", "records"))
    segmenter = (segmenter_of(records) or preferred_segmenter()) if request.words else ""
    try:
        go_on_completing(folder, out)
        for place in (folder, records):
            place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(
            f"the folder cannot be made: {error.strerror}", str(request.out), "give another --out"
        ) from None
    settings = PartSettings(
        sources=sources,
        read=request.reading,
        filters=request.filters,
        dedupe=request.dedupe,
        encode=EncodeOptions(encoder=choice.name, segmenter=segmenter, sentences=request.sentences),
        tokenizer_json=handle.json,
        tokenizer=handle.info,
        validation_share=request.validation_share,
        folder=folder,
        records=records,
    )
    decided = {**decides, "encoder": f"{choice.name} {choice.version}", "segmenter": segmenter}
    if request.dedupe:  # what is a duplicate depends on every other part
        decided["corpus"] = [source.identity for source in sources]
    parts = tuple(Part(n, part, part_key(settings, decided, part)) for n, part in enumerate(segments))
    return Plan(request=request, handle=handle, decides=decides, settings=settings, parts=parts, encoder=choice.record)


def _completed_meanwhile(plan: Plan) -> bool:
    """Whether other tasks came to the end after this one had looked: it would begin the same anew."""
    if not (plan.request.out / MANIFEST).is_file():
        return False
    for place in (plan.settings.folder, plan.settings.records):
        with suppress(OSError):  # not empty: somebody is at work in it
            place.rmdir()
    return True


def _build(plan: Plan, workers: Workers, console: Console) -> list[PartRecord]:
    """Build what is left of this task's parts; the records of all parts that are finished, by whomever."""
    request, settings = plan.request, plan.settings
    finished = _finished(plan)
    mine = [part for part in plan.parts if part.number % request.tasks == request.task]
    left = [part for part in mine if part.number not in finished]
    strangers = _built_otherwise(plan) if left and request.tasks == 1 else 0
    if finished or strangers:
        told = f"{len(finished)} of {len(plan.parts)} parts are there already"
        if strangers:
            told += f"; {strangers} of the others are of another text or encoder than now, and are built anew"
        console.print(f"shards     {request.out}: {told}", highlight=False, soft_wrap=True)
    if left:
        if request.words:
            claim(settings.records, settings.encode.segmenter)
        if request.dedupe:
            _mark_duplicates(plan, workers, console)
        try:
            workers.run(build_part, settings, left, "tokenizing", _num_bytes(plan, left), console)
        finally:
            finished = _finished(plan)
            if not finished and request.tasks == 1:  # nothing to go on from: of several tasks another may be at work
                for place in (settings.folder, settings.records):
                    shutil.rmtree(place, ignore_errors=True)
    return [finished[number] for number in sorted(finished)]


def _finished(plan: Plan) -> dict[int, PartRecord]:
    records = {part.number: read_record(plan.settings, part) for part in plan.parts}
    return {number: record for number, record in records.items() if record is not None}


def _built_otherwise(plan: Plan) -> int:
    """Parts that are finished, but with another program or from other text than this task would take."""
    records = plan.settings.records
    # By their names: what another task finishes this moment, with the same program, is none of them.
    return sum(
        any(path != PartFiles(records, part).record for path in records.glob(f"part-{part.number:05d}-*.json"))
        for part in plan.parts
    )


def _mark_duplicates(plan: Plan, workers: Workers, console: Console) -> None:
    """Say of every text of the corpus whether an earlier one is the same: a first reading, before tokenizing."""
    files = [PartFiles(plan.settings.records, part) for part in plan.parts]
    if all(file.duplicates.is_file() for file in files):
        return
    left = [part for part, file in zip(plan.parts, files, strict=True) if not file.hashes.is_file()]
    workers.run(hash_part, plan.settings, left, "hashing", _num_bytes(plan, left), console)
    for file, mask in zip(files, find_duplicates([file.hashes for file in files]), strict=True):
        with replacing(file.duplicates) as path, path.open("wb") as opened:
            np.save(opened, mask)


def _num_workers(request: BuildRequest, total_bytes: int, num_parts: int) -> int:
    """Processes for this task's share of the parts, or for all of them where it reads all, to find duplicates."""
    mine = num_parts if request.dedupe else len(range(request.task, num_parts, request.tasks))
    enough = total_bytes * mine // (max(num_parts, 1) * BYTES_PER_WORKER)
    wanted = request.workers or min(len(os.sched_getaffinity(0)), max(1, enough))
    return max(1, min(wanted, mine))


def _num_bytes(plan: Plan, parts: Sequence[Part]) -> int:
    """Of the corpus in these parts, as far as it can be told before it is read."""
    share = len(parts) / max(len(plan.parts), 1)
    return int(sum(source.num_bytes for source in plan.settings.sources) * share)
