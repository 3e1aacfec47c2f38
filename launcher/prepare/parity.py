"""The gate for faster encoders: none is used whose ids differ from the reference's anywhere it was looked.

It is held against `tokenizers` on a sample of the corpus and on a list of nasty texts. What was found is remembered by
tokenizer and version, so that a second build does not ask again.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from launcher.errors import MissingDependencyError, TokenizerError, did_you_mean
from launcher.prepare.encoders import (
    BATCH_BYTES,
    FAST,
    REFERENCE,
    Encoded,
    EncodeOptions,
    Encoder,
    build_encoder,
    candidates,
    ids_tokenizer,
    installed,
    one_thread,
)
from launcher.prepare.nasty_texts import nasty_texts

BATCH = 256
"""Texts compared at once, and about `BATCH_BYTES` of them; of longer texts the beginnings. An id takes a hundred bytes
while `tokenizers` works (measured: 200 texts of 290 KB at once 3.8 GB, one of 66 MB 10 GB and three minutes)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The encoder to use."""

    name: str
    version: str
    reason: str
    """One sentence: what was chosen, and why."""
    record: str
    """The same for the manifest: nothing that depends on which corpus the encoder was held against."""


def choose_encoder(
    tokenizer_json: str,
    sha256: str,
    sample: Callable[[], Iterable[str]],
    wanted: str = "auto",
    cache: Path | None = None,
) -> Choice:
    """The fastest encoder that gives the reference's ids.

    Args:
        tokenizer_json: The tokenizer.
        sha256: Of its canonical form.
        sample: Texts of the corpus; called when something must be compared.
        wanted: `auto`, or the name of an encoder.
        cache: Folder of what was found before; without it, the user's.

    Raises:
        MissingDependencyError: The encoder asked for is not installed.
        TokenizerError: It does not take this tokenizer, or its ids differ; or there is no such encoder.
    """
    if wanted not in ("auto", REFERENCE, *FAST):
        fix = did_you_mean(wanted, ["auto", REFERENCE, *FAST])
        raise TokenizerError(f"there is no encoder {wanted!r}", "--encoder", fix)
    reference = installed(REFERENCE)
    if wanted == REFERENCE:
        chosen = f"{REFERENCE} {reference}, the reference"
        return Choice(REFERENCE, reference, chosen, chosen)
    known = candidates(tokenizer_json)
    if wanted != "auto":
        if not installed(wanted):
            raise MissingDependencyError(f"{wanted} is not installed", "--encoder", f"pip install {wanted}")
        if wanted not in known:
            raise TokenizerError(f"{wanted} does not take this kind of tokenizer", "--encoder", "leave it to auto")
        known = [wanted]
    remembered = _Memory(cache or _default_cache(), sha256)
    found, records = [], []
    for name in known:
        if wanted == "auto" and FAST[name].unsound:
            verdict = record = FAST[name].unsound
        else:
            verdict, record = _judged(name, tokenizer_json, sample, remembered)
        program = f"{name} {installed(name)}"
        if record == SAME:
            return Choice(name, installed(name), f"{program}: {verdict}", f"{program}: {record}")
        found.append(f"{program} {verdict}")
        records.append(f"{program} {record}")
    if wanted != "auto":
        raise TokenizerError(f"{found[0]}", "--encoder", "leave it to auto, which takes no encoder whose ids differ")
    none = "no faster encoder for this kind of tokenizer is installed (pip install -e '.[fast]')"
    told, recorded = (f"{REFERENCE} {reference}: {'; '.join(each) or none}" for each in (found, records))
    return Choice(REFERENCE, reference, told, recorded)


SAME, DIFFERS = "ids equal to the reference's", "differs"
LEAST_DOCUMENTS = 200
"""Of the corpus; what fewer said holds for this corpus alone and is not remembered."""


def _judged(
    name: str, tokenizer_json: str, sample: Callable[[], Iterable[str]], remembered: _Memory
) -> tuple[str, str]:
    """What was found of an encoder, now or before; in short, so that the manifest does not depend on which of them."""
    nasty = nasty_texts(ids_tokenizer(tokenizer_json))
    texts = xxhash.xxh3_64_hexdigest("\n".join(nasty).encode())
    key = f"{name} {installed(name)} against {REFERENCE} {installed(REFERENCE)} on {texts}"
    verdict = remembered.get(key)
    told = f"{verdict}, as was found before"
    if verdict is None:
        verdict, num_documents = _compare(name, tokenizer_json, nasty, sample)
        told = verdict
        # Not that it broke down: what was missing may be there the next time.
        if verdict.startswith(DIFFERS) or num_documents >= LEAST_DOCUMENTS:
            remembered.put(key, verdict)
    return told, next((short for short in (SAME, DIFFERS) if verdict.startswith(short)), verdict)


def _compare(
    name: str, tokenizer_json: str, nasty: Sequence[str], sample: Callable[[], Iterable[str]]
) -> tuple[str, int]:
    """Whether an encoder's ids are the reference's, in words, and on how many documents of the corpus."""
    try:
        fast = build_encoder(EncodeOptions(encoder=name), tokenizer_json)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # whatever a Rust library raises, panics among it
        return f"does not take this tokenizer ({' '.join(str(error).split())[:200]})", 0
    reference = build_encoder(EncodeOptions(), tokenizer_json)
    if not _are_equal(fast.encode(nasty), reference.encode(nasty)):
        number = _first_that_differs(fast, reference, nasty)
        return f"{DIFFERS} on {nasty[number][:40]!r} (nasty text {number})", 0
    documents = 0
    for batch, truth in _encoded_ahead(reference, _batched(sample())):
        if not _are_equal(fast.encode(batch), truth):
            worst = _first_that_differs(fast, reference, batch)
            return f"{DIFFERS} on document {documents + worst} of the sample: {batch[worst][:40]!r}", documents
        documents += len(batch)
    return f"{SAME} on {documents} documents and {len(nasty)} nasty texts", documents


def _encoded_ahead(reference: Encoder, batches: Iterable[list[str]]) -> Iterator[tuple[list[str], Encoded]]:
    """Each batch and what the reference makes of it, in order, on all cores: nothing can begin before the gate opens.

    Threads, since `tokenizers` lets go of Python while it works, and each works for itself. No more batches are asked
    for than keep them busy.
    """
    cores = len(os.sched_getaffinity(0))
    waiting: deque[tuple[list[str], Future[Encoded]]] = deque()
    with one_thread(), ThreadPoolExecutor(cores, "gate") as threads:
        try:
            for batch in batches:
                waiting.append((batch, threads.submit(reference.encode, batch)))
                if len(waiting) > 2 * cores:
                    texts, future = waiting.popleft()
                    yield texts, future.result()
            for texts, future in waiting:
                yield texts, future.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _first_that_differs(fast: Encoder, reference: Encoder, texts: Sequence[str]) -> int:
    """The first text on which the two part ways; of texts on which they do only in company, the first."""
    alone = (not _are_equal(fast.encode([text]), reference.encode([text])) for text in texts)
    return next((number for number, differs in enumerate(alone) if differs), 0)


def _are_equal(one: Encoded, other: Encoded) -> bool:
    return np.array_equal(one.lengths_D, other.lengths_D) and np.array_equal(one.ids_N, other.ids_N)


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_bytes = 0
    for text in texts:
        batch.append(text[:BATCH_BYTES])
        num_bytes += len(batch[-1].encode())
        if len(batch) == BATCH or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pretraining-launcher" / "encoders"


class _Memory:
    """What was found of a tokenizer, in a file; a file that cannot be read or written is no error."""

    def __init__(self, folder: Path, sha256: str) -> None:
        self._path = folder / f"{sha256}.json"
        self._verdicts: dict[str, str] = {}
        with suppress(OSError, ValueError):
            fields = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(fields, dict):
                self._verdicts = {str(key): str(value) for key, value in fields.items()}

    def get(self, key: str) -> str | None:
        return self._verdicts.get(key)

    def put(self, key: str, verdict: str) -> None:
        if self._verdicts.get(key) == verdict:
            return
        self._verdicts[key] = verdict
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            writing = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            writing.write_text(json.dumps(self._verdicts, ensure_ascii=False, indent=1), encoding="utf-8")
            os.replace(writing, self._path)
