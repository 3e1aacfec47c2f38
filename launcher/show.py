"""`pretrain show`: documents of a folder of shards, and the samples a recipe makes of them, as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from launcher.config.loading import load_recipe
from launcher.config.objectives import (
    Head,
    MixedObjective,
    ObjectiveConfig,
    PartConfig,
    PrefixObjective,
    SpanObjective,
    UL2Objective,
    in_words,
)
from launcher.config.recipe import Recipe
from launcher.errors import LauncherError, UsageError
from launcher.feed.data import Data, open_data
from launcher.objectives.base import IGNORE_INDEX
from launcher.objectives.mixed import PART_IDS
from launcher.shards.identity import open_tokenizer
from launcher.shards.manifest import SPLITS, Manifest, SpecialTokens, read_manifest
from launcher.shards.reader import Split
from launcher.shards.verify import problems_json

PAIRS_IN_WORDS = {0: ", as it was written", 1: ", changed"}


def show(
    folder: Path, split: str, first: int, num_documents: int, num_samples: int, recipe: str | None, as_json: bool
) -> None:
    """Print documents and samples; as JSON also what went wrong, as `pretrain verify` has it.

    Args:
        folder: Of shards.
        split: `train` or `validation`.
        first: First document and first position to show.
        num_documents: How many documents.
        num_samples: How many samples, in the order of training.
        recipe: Whose objective makes the samples; without it, a quick start's that the tokenizer can serve.
        as_json: Print JSON.

    Raises:
        ShardError: The folder is damaged.
        UsageError: No document has the first number.
        ObjectiveError: The tokenizer cannot serve the recipe's objective.
    """
    try:
        _show(folder, split, first, num_documents, num_samples, recipe, as_json)
    except LauncherError as error:
        if as_json:
            print(problems_json(folder, [error.on_one_line()]))
        raise


def _show(
    folder: Path, split: str, first: int, num_documents: int, num_samples: int, recipe: str | None, as_json: bool
) -> None:
    manifest = read_manifest(folder)
    tokenizer = open_tokenizer(folder / "tokenizer" / "tokenizer.json")
    opened = Split(folder, split, manifest)
    if num_documents and first >= opened.num_documents:
        if not opened.num_documents:
            other = next(name for name in SPLITS if name != split)
            raise UsageError(f"{split} has no documents", "--split", f"--split {other}")
        fix = f"begin below {opened.num_documents}, or show samples alone: --documents 0"
        raise UsageError(f"{split} has {opened.num_documents} documents, none from {first} on", "--from", fix)
    numbers = range(first, min(first + num_documents, opened.num_documents))
    documents = [_document(opened, number, tokenizer) for number in numbers]
    samples: list[dict[str, Any]] = []
    if num_samples:
        of_folder = _of_folder(load_recipe(recipe or _fitting(manifest)).recipe, folder)
        samples = _samples(open_data(of_folder), of_folder.objective, split, first, num_samples, tokenizer)
    if as_json:
        print(json.dumps({"documents": documents, "samples": samples}, ensure_ascii=False, indent=1))
        return
    console = Console(soft_wrap=True, highlight=False)
    for document in documents:
        head = f"document {document['number']}: {document['origin']}, {document['num_tokens']} tokens"
        console.print(Text(head, style="bold"))
        console.print(Text(document["text"]))
    for sample in samples:
        pair = PAIRS_IN_WORDS.get(sample["pair_label"], "") if "pair_label" in sample else ""
        objective = f"{sample['objective']}{pair}"
        head = f"sample at position {sample['position']} ({objective}): {', '.join(sample['documents'])}"
        console.print(Text(head, style="bold"))
        console.print(COLOURED[sample["head"]](sample, tokenizer, manifest.tokenizer.special))


def _fitting(manifest: Manifest) -> str:
    special = manifest.tokenizer.special
    masked = None not in (special.mask, special.row_begin, special.row_end, special.pad)
    return "law-bert-zh" if masked else "law-gpt-zh"


def _of_folder(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe with a folder as its only corpus; what it excludes of that folder stays excluded."""
    excluded = {corpus.shards.resolve(): corpus.exclude for corpus in recipe.data.corpora.values()}
    alone = {"shards": folder, "mixture": {}, "changes": (), "exclude": excluded.get(folder.resolve())}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=alone)})


def _document(split: Split, number: int, tokenizer: Tokenizer) -> dict[str, Any]:
    tokens, origin = split.document(number), split.origin(number)
    return {
        "number": number,
        "origin": f"{origin.source}:{origin.number}",
        "text_hash": origin.text_hash,
        "num_tokens": len(tokens),
        "text": tokenizer.decode(tokens.tolist()),
    }


def _samples(
    data: Data, objective: ObjectiveConfig, split: str, first: int, count: int, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    loader = data.train if split == "train" else next(iter(data.validation), None)
    if loader is None:
        return []
    makes = data.objective if split == "train" else data.fixed_objective
    rows = loader.fetch(np.arange(first, first + count, dtype=np.int64))
    batch, pieces = makes.batch(rows), rows.pieces()
    samples = []
    for row, position in enumerate(rows.positions_B.tolist()):
        stream = loader.corpora[int(rows.corpora_B[row])].samples.stream
        numbers = pieces.documents_P[pieces.rows_P == row].tolist()
        origins = [stream.origin(number) for number in numbers] if isinstance(stream, Split) else []
        inputs, labels = batch["input_ids"][row], batch["labels"][row]
        made_by: ObjectiveConfig | PartConfig = objective
        if isinstance(objective, MixedObjective | UL2Objective):
            made_by = objective.parts[int(batch[PART_IDS][row])]
        pairs: dict[str, Any] = {}
        if "pair_labels" in batch:
            told = int(batch["pair_labels"][row])
            pairs = {"token_type_ids": batch["token_type_ids"][row].tolist(), "pair_label": told}
        samples.append(
            {
                **pairs,
                "position": position,
                "documents": list(dict.fromkeys(f"{origin.source}:{origin.number}" for origin in origins)),
                "objective": in_words(made_by),
                "head": objective.head,
                "begins_with_mode": _has_mode(objective, made_by),
                "input_ids": inputs.tolist(),
                "labels": labels.tolist(),
                "attention_mask": batch["attention_mask"][row].tolist(),
                "input": tokenizer.decode(inputs.tolist(), skip_special_tokens=False),
                "target": tokenizer.decode(labels[labels != IGNORE_INDEX].tolist(), skip_special_tokens=False),
            }
        )
    return samples


def _has_mode(objective: ObjectiveConfig, made_by: ObjectiveConfig | PartConfig) -> bool:
    given = not isinstance(objective, MixedObjective | UL2Objective) or objective.mode_tokens != "none"
    return given and isinstance(made_by, SpanObjective | PrefixObjective) and made_by.mode is not None


def _coloured_masks(sample: dict[str, Any], tokenizer: Tokenizer, special: SpecialTokens) -> Text:
    """What a masked model reads; a masked token as what it hides, red behind the mask token, yellow behind a random
    one, green where it stands as it is.
    """
    text = _Runs(tokenizer)
    for token, label in zip(sample["input_ids"], sample["labels"], strict=True):
        if label == IGNORE_INDEX:
            text.add(token, "")
            continue
        style = "red" if token == special.mask else "green" if token == label else "yellow"
        random = f"←{text.read([token])}" if style == "yellow" else ""
        text.add_written(f"⟦{text.read([label])}{random}⟧", f"bold {style}")
    return text.whole()


def _coloured_continuation(sample: dict[str, Any], tokenizer: Tokenizer, special: SpecialTokens) -> Text:
    """What a causal model reads and, green, what it must predict; cyan the tokens that turn a text around."""
    signs = {special.fim_prefix, special.fim_middle, special.fim_suffix}
    text = _Runs(tokenizer)
    labels = sample["labels"]
    # A token is green where the label of the place before it asks for it; the last label has no input of its own.
    tokens, read = [*sample["input_ids"], labels[-1]], [*sample["attention_mask"], labels[-1] != IGNORE_INDEX]
    for token, is_read, label in zip(tokens, read, [IGNORE_INDEX, *labels], strict=True):
        if is_read:
            text.add(token, "bold cyan" if token in signs else "green" if label == token else "")
    return text.whole()


def _coloured_pair(sample: dict[str, Any], tokenizer: Tokenizer, special: SpecialTokens) -> Text:
    """What the encoder reads and, below and green, what the decoder must write; cyan the sentinels, magenta a mode."""
    text = _Runs(tokenizer)
    sentinels = set(special.sentinels)
    for place, (token, is_read) in enumerate(zip(sample["input_ids"], sample["attention_mask"], strict=True)):
        if is_read:
            is_mode = place == 0 and sample["begins_with_mode"]
            text.add(token, "bold magenta" if is_mode else "bold cyan" if token in sentinels else "")
    written = [token for token in sample["labels"] if token != IGNORE_INDEX]
    if written:
        text.add_written("\n→ ", "bold")
    for token in written:
        text.add(token, "bold cyan" if token in sentinels else "green")
    return text.whole()


class _Runs:
    """Text put together of tokens, those of one colour decoded together: a character may have several."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._text = tokenizer, Text()
        self._run: list[int] = []
        self._style = ""

    def read(self, tokens: list[int]) -> str:
        """The text of some tokens."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def add(self, token: int, style: str) -> None:
        """Go on with a token."""
        if style != self._style:
            self._flush()
        self._style = style
        self._run.append(token)

    def add_written(self, written: str, style: str) -> None:
        """Go on with a text."""
        self._flush()
        self._text.append(written, style=style)

    def whole(self) -> Text:
        """All of it."""
        self._flush()
        return self._text

    def _flush(self) -> None:
        if self._run:
            self._text.append(self.read(self._run), style=self._style)
            self._run = []


COLOURED: dict[Head, Callable[[dict[str, Any], Tokenizer, SpecialTokens], Text]] = {
    "masked": _coloured_masks,
    "next_sentence": _coloured_masks,
    "sentence_order": _coloured_masks,
    "causal": _coloured_continuation,
    "seq2seq": _coloured_pair,
}
