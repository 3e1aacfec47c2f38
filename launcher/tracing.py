"""`pretrain trace`: which text was in a step, and which steps saw a text.

Order and packing are pure functions of seed and position, so nothing was written down for this: it is worked out again,
and held against the digest that the run left of each step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from launcher.config.loading import check_recipe, read_yaml
from launcher.config.recipe import Recipe
from launcher.errors import CheckpointError, ShardError, UsageError
from launcher.feed import Data, open_data
from launcher.samples.digest import combine, digest
from launcher.shards.identity import open_tokenizer
from launcher.shards.reader import Split
from launcher.shards.search import HASH, PLACE, find_documents

WIDTH = 160
"""Characters of a text shown on a terminal; `--json` has all of it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a document that stands in a sequence."""

    document: str
    """FILE:LINE, as `--document` takes it."""
    text_hash: str
    """xxh3-128 of the whole text."""
    first_token: int
    """Of the document."""
    num_tokens: int
    text: str
    excluded: bool
    """Whether the run's exclude list hid it."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence of a step."""

    position: int
    """In the run."""
    corpus: str
    sample: int
    """Number in the corpus."""
    epoch: int
    pieces: list[Piece]


def trace_step(run: Path, step: int) -> tuple[list[Sequence], str]:
    """The sequences of a step, and whether they are those the run was trained on.

    Args:
        run: A run's folder.
        step: Number of the step, from 1.

    Returns:
        The sequences in order, and one sentence on the digest.

    Raises:
        CheckpointError: There is no run here.
        UsageError: The run has not come to this step.
    """
    recipe, data, steps = _open(run)
    if step not in steps:
        last = f"it has come to step {max(steps)}" if steps else "it has taken no step"
        raise UsageError(f"the run has no step {step}: {last}", str(run), "take one of its steps")
    schedule = recipe.batch.schedule
    positions = np.arange(schedule.position_at(step - 1), schedule.position_at(step), dtype=np.int64)
    batch = data.train.fetch(positions)
    found = f"{combine(digest(positions, data.objective.batch(batch))):016x}"
    told = steps[step]
    verdict = (
        f"the digest is the run's: {found}"
        if told == found
        else f"WARNING: the digest is {found}, the run's was {told}: shards, exclude list or recipe have changed"
    )
    return list(_sequences(data, batch, _tokenizer(run))), verdict


def trace_document(run: Path, name: str) -> list[dict[str, Any]]:
    """The steps that saw a document.

    Args:
        run: A run's folder.
        name: FILE:LINE, or the xxh3-128 of its text.

    Returns:
        For each document of this name: corpus, split, FILE:LINE, hash, and the steps so far that held tokens of it.

    Raises:
        CheckpointError: There is no run here.
        ShardError: No document bears the name.
    """
    if not (HASH.fullmatch(name) or PLACE.fullmatch(name)):
        raise UsageError(f"{name!r} names no document", "--document", "write FILE:LINE, or the xxh3-128 of the text")
    recipe, data, steps = _open(run)
    schedule = recipe.batch.schedule
    position = schedule.position_at(max(steps, default=0))
    found = []
    for number, corpus in enumerate(data.train.corpora):
        split = _split(corpus.samples.stream)
        for document in find_documents(split, [name])[name]:
            positions = data.train.positions_of(number, document, position)
            seen = sorted({schedule.step_of(int(p)) + 1 for p in positions})
            found.append(_described(split, document, corpus.name, seen))
    for loader in data.validation:
        split = _split(loader.corpora[0].samples.stream)
        found += [_described(split, d, loader.corpora[0].name, []) for d in find_documents(split, [name])[name]]
    if not found:
        fix = "see `pretrain trace RUN --step N` for names"
        raise ShardError(f"no document of the run's corpora is called {name}", str(run), fix)
    return found


def print_step(run: Path, step: int, as_json: bool) -> None:
    """`pretrain trace RUN --step N`."""
    sequences, verdict = trace_step(run, step)
    if as_json:
        fields = {"step": step, "digest": verdict, "sequences": [asdict(sequence) for sequence in sequences]}
        print(json.dumps(fields, ensure_ascii=False, indent=1))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"step {step}: {len(sequences)} sequences; {verdict}")
    for sequence in sequences:
        head = f"position {sequence.position}: {sequence.corpus}, sample {sequence.sample}, epoch {sequence.epoch}"
        console.print(head, style="bold")
        for piece in sequence.pieces:
            end = piece.first_token + piece.num_tokens
            hidden = "  EXCLUDED" if piece.excluded else ""
            console.print(f"  {piece.document}  tokens {piece.first_token}–{end - 1}{hidden}", style="cyan")
            console.print(f"    {_short(piece.text)}")


def print_document(run: Path, name: str, as_json: bool) -> None:
    """`pretrain trace RUN --document ID`."""
    found = trace_document(run, name)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    for entry in found:
        steps = ", ".join(map(str, entry["steps"])) or "none"
        held_out = " (held out: no step trains on it)" if entry["split"] == "validation" else ""
        print(f"{entry['document']}  {entry['text_hash']}  {entry['corpus']}/{entry['split']}{held_out}")
        print(f"  steps: {steps}")


def _open(run: Path) -> tuple[Recipe, Data, dict[int, str]]:
    """The recipe, the data, and the digests of the steps a run has taken."""
    if not (run / "recipe.yaml").is_file():
        raise CheckpointError("there is no run here", str(run), "give a run's folder, e.g. runs/law-bert-zh")
    recipe = check_recipe(read_yaml(run / "recipe.yaml"), str(run / "recipe.yaml"))
    return recipe, open_data(recipe), _digests(run / "metrics.jsonl")


def _digests(path: Path) -> dict[int, str]:
    steps: dict[int, str] = {}
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:  # the last line of a run that was killed
                    continue
                if isinstance(entry, dict) and "batch_digest" in entry:
                    steps[entry["step"]] = entry["batch_digest"]
    return steps


def _tokenizer(run: Path) -> Tokenizer:
    return open_tokenizer(run / "tokenizer" / "tokenizer.json")


def _split(stream: object) -> Split:
    if not isinstance(stream, Split):
        raise TypeError(f"{type(stream).__name__} does not know where its documents came from")
    return stream


def _sequences(data: Data, batch: Any, tokenizer: Tokenizer) -> Iterator[Sequence]:
    pieces = batch.pieces()
    for row, position in enumerate(batch.positions_B.tolist()):
        corpus = data.train.corpora[int(batch.corpora_B[row])]
        split = _split(corpus.samples.stream)
        shown = []
        for piece in np.flatnonzero(pieces.rows_P == row).tolist():
            document, offset = int(pieces.documents_P[piece]), int(pieces.offsets_P[piece])
            length = int(pieces.lengths_P[piece])
            origin = split.origin(document)
            ids = split.document(document)[offset : offset + length].tolist()
            shown.append(
                Piece(
                    document=f"{origin.source}:{origin.number}",
                    text_hash=origin.text_hash,
                    first_token=offset,
                    num_tokens=length,
                    text=tokenizer.decode(ids),
                    excluded=document in corpus.exclude,
                )
            )
        yield Sequence(position, corpus.name, int(batch.sample_ids_B[row]), int(batch.epochs_B[row]), shown)


def _described(split: Split, document: int, corpus: str, steps: list[int]) -> dict[str, Any]:
    origin = split.origin(document)
    return {
        "document": f"{origin.source}:{origin.number}",
        "text_hash": origin.text_hash,
        "corpus": corpus,
        "split": split.name,
        "steps": steps,
    }


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= WIDTH else f"{flat[: WIDTH - 1]}…"
