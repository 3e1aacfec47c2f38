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
from launcher.engine.records import read_metrics
from launcher.errors import CheckpointError, ShardError, UsageError
from launcher.feed.data import Data, open_data, pass_over
from launcher.samples.digest import combine, digest
from launcher.samples.loader import SampleBatch
from launcher.samples.passed_over import Kept, moved_on, put_back, read_kept
from launcher.shards.identity import open_tokenizer
from launcher.shards.reader import Split
from launcher.shards.search import find_documents, is_name

WIDTH = 160
"""Characters of a text shown on a terminal; `--json` has all of it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a document that stands in a sequence."""

    document: str
    """FILE:LINE, as `--document` takes it."""
    text_hash: str
    """xxh3-128 of the whole text; empty where others made the tokens of it."""
    first_token: int
    """Of the document."""
    num_tokens: int
    text: str
    excluded: bool
    """Whether the exclude list hid it."""


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
    past = _open(run)
    if step not in past.digests:
        last = f"it has come to step {max(past.digests)}" if past.digests else "it has taken no step"
        raise UsageError(f"the run has no step {step}: {last}", str(run), "take one of its steps")
    return _trace(past, run, past.first_position(step), step, past.digests[step])


def trace_digest(run: Path, digest_of_batch: str) -> tuple[int, list[Sequence], str]:
    """The sequences of the batch with this digest: of a step, or of one that was left out or taken back.

    Returns:
        The number the step has or had, its sequences in order, and one sentence on the digest.

    Raises:
        CheckpointError: There is no run here.
        UsageError: Nothing in the run's log has the digest.
    """
    past = _open(run)
    for step, told in past.digests.items():
        if told == digest_of_batch:
            return step, *_trace(past, run, past.first_position(step), step, told)
    for event in past.left_out:
        if event["batch_digest"] == digest_of_batch:
            return event["step"], *_trace(past, run, event["position"], event["step"], digest_of_batch)
    raise UsageError(
        f"nothing in the run's log has the digest {digest_of_batch!r}",
        str(run / "metrics.jsonl"),
        "take a batch_digest from there",
    )


def _trace(past: _Past, run: Path, first: int, step: int, told: str) -> tuple[list[Sequence], str]:
    data = past.data
    batch, found = past.batch(data, first, step)
    verdict = f"the digest is the run's: {found}"
    if told != found:
        plain = _open_data(_without_lists(past.recipe), past.kept)
        as_it_was, without = past.batch(plain, first, step)
        if told == without:
            data, batch = plain, as_it_was
            verdict = f"the digest is the run's: {told}, from before there was an exclude list"
        else:
            verdict = (
                f"WARNING: the digest is {found}, the run's was {told}: shards, exclude list or recipe have changed"
            )
    why = [event["why"] for event in past.left_out if event["batch_digest"] == told]
    verdict += f"; its update was left out: {why[0]}" if why else ""
    return list(_sequences(data, batch, _tokenizer(run))), verdict


def trace_document(run: Path, name: str) -> list[dict[str, Any]]:
    """The steps that saw a document.

    Args:
        run: A run's folder.
        name: FILE:LINE, or the xxh3-128 of its text.

    Returns:
        For each document of this name: corpus, split, FILE:LINE, hash, the steps so far that saw tokens of it, and
        those whose digest proves that today's exclude list hid them. Under an earlier list a step may have hidden them
        as well: nothing proves it, so it is told as one that saw them.

    Raises:
        CheckpointError: There is no run here.
        ShardError: No document bears the name.
    """
    if not is_name(name):
        raise UsageError(f"{name!r} names no document", "--document", "write FILE:LINE, or the xxh3-128 of the text")
    past = _open(run)
    data, schedule = past.data, past.recipe.batch.schedule
    windows = past.kept.windows
    position = moved_on(schedule.position_at(max(past.digests, default=0)), windows)
    found = []
    for number, corpus in enumerate(data.train.corpora):
        split = _split(corpus.samples.stream)
        for document in find_documents(split, [name])[name]:
            positions = data.train.positions_of(number, document, position)
            trained = [put_back(int(p), windows) for p in positions]
            held = sorted({schedule.step_of(p) + 1 for p in trained if p is not None})
            listed = held if document in corpus.exclude else []
            hidden = [s for s in listed if past.batch(data, past.first_position(s), s)[1] == past.digests.get(s)]
            seen = [step for step in held if step not in hidden]
            found.append(_described(split, document, corpus.name, seen, hidden))
    for loader in data.validation:
        split = _split(loader.corpora[0].samples.stream)
        found += [_described(split, d, loader.corpora[0].name, [], []) for d in find_documents(split, [name])[name]]
    if not found:
        fix = "see `pretrain trace RUN --step N` for names"
        raise ShardError(f"no document of the run's corpora is called {name}", str(run), fix)
    return found


def print_step(run: Path, step: int, as_json: bool) -> None:
    """`pretrain trace RUN --step N`."""
    _print(step, *trace_step(run, step), as_json)


def print_digest(run: Path, digest_of_batch: str, as_json: bool) -> None:
    """`pretrain trace RUN --digest HEX`."""
    _print(*trace_digest(run, digest_of_batch), as_json)


def _print(step: int, sequences: list[Sequence], verdict: str, as_json: bool) -> None:
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
        text_hash = f"{entry['text_hash']}  " if entry["text_hash"] else ""
        print(f"{entry['document']}  {text_hash}{entry['corpus']}/{entry['split']}{held_out}")
        print(f"  steps: {steps}")
        if entry["hidden_in"]:
            print(f"  hidden by the exclude list in steps: {', '.join(map(str, entry['hidden_in']))}")


@dataclass(frozen=True, slots=True)
class _Past:
    """What a run has left of its steps."""

    recipe: Recipe
    data: Data
    digests: dict[int, str]
    """By step."""
    left_out: list[dict[str, Any]]
    """Events of steps whose update was left out, those among them that were taken back."""
    kept: Kept
    """Of the data that it passed over."""

    def first_position(self, step: int) -> int:
        """Where a step's data begins."""
        return moved_on(self.recipe.batch.schedule.position_at(step - 1), self.kept.windows)

    def batch(self, data: Data, first: int, step: int) -> tuple[SampleBatch, str]:
        """The samples of a step whose data begins at a position, and their digest as the log has it."""
        positions = np.arange(first, first + self.recipe.batch.schedule.global_batch_at(step - 1), dtype=np.int64)
        batch = data.train.fetch(positions)
        return batch, f"{combine(digest(positions, data.objective.batch(batch))):016x}"


def _open(run: Path) -> _Past:
    if not (run / "recipe.yaml").is_file():
        raise CheckpointError("there is no run here", str(run), "give a run's folder, e.g. runs/law-bert-zh")
    recipe = check_recipe(read_yaml(run / "recipe.yaml"), str(run / "recipe.yaml"))
    metrics = run / "metrics.jsonl"
    lines = [line for line in read_metrics(metrics) if _tells_a_batch(line)] if metrics.is_file() else []
    digests = {line["step"]: line["batch_digest"] for line in lines if "event" not in line}
    left_out = [line for line in lines if line.get("event") == "left_out"]
    kept = read_kept(run) or Kept([], 0)
    return _Past(recipe, _open_data(recipe, kept), digests, left_out, kept)


def _open_data(recipe: Recipe, kept: Kept) -> Data:
    data = open_data(recipe)
    pass_over(data, recipe, kept.windows, kept.changes)
    return data


def _without_lists(recipe: Recipe) -> Recipe:
    """The recipe as it was before documents were excluded."""
    mixture = {name: corpus.model_copy(update={"exclude": None}) for name, corpus in recipe.data.mixture.items()}
    data = recipe.data.model_copy(update={"exclude": None, "mixture": mixture})
    return recipe.model_copy(update={"data": data})


def _tells_a_batch(line: dict[str, Any]) -> bool:
    return isinstance(line.get("step"), int) and isinstance(line.get("batch_digest"), str)


def _tokenizer(run: Path) -> Tokenizer:
    return open_tokenizer(run / "tokenizer" / "tokenizer.json")


def _split(stream: object) -> Split:
    if not isinstance(stream, Split):
        raise TypeError(f"{type(stream).__name__} does not know where its documents came from")
    return stream


def _sequences(data: Data, batch: SampleBatch, tokenizer: Tokenizer) -> Iterator[Sequence]:
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


def _described(split: Split, document: int, corpus: str, steps: list[int], hidden_in: list[int]) -> dict[str, Any]:
    origin = split.origin(document)
    return {
        "document": f"{origin.source}:{origin.number}",
        "text_hash": origin.text_hash,
        "corpus": corpus,
        "split": split.name,
        "steps": steps,
        "hidden_in": hidden_in,
    }


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= WIDTH else f"{flat[: WIDTH - 1]}…"
