"""`pretrain show`: documents of a folder of shards, and the samples a recipe makes of them, as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from launcher.config.loading import load_recipe
from launcher.feed import Data, open_data
from launcher.objectives.base import IGNORE_INDEX
from launcher.shards.manifest import Manifest, read_manifest
from launcher.shards.reader import Split


def show(
    folder: Path, split: str, first: int, num_documents: int, num_samples: int, recipe: str | None, as_json: bool
) -> None:
    """Print documents and samples.

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
        ObjectiveError: The tokenizer cannot serve the recipe's objective.
    """
    manifest = read_manifest(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    opened = Split(folder, split, manifest)
    numbers = range(first, min(first + num_documents, opened.num_documents))
    documents = [_document(opened, number, tokenizer) for number in numbers]
    samples: list[dict[str, Any]] = []
    if num_samples:
        data = open_data(load_recipe(recipe or _fitting(manifest), [f"data.shards={folder}"]).recipe)
        samples = _samples(data, split, first, num_samples, tokenizer)
    if as_json:
        print(json.dumps({"documents": documents, "samples": samples}, ensure_ascii=False, indent=1))
        return
    console = Console(soft_wrap=True, highlight=False)
    for document in documents:
        head = f"document {document['number']}: {document['origin']}, {document['num_tokens']} tokens"
        console.print(Text(head, style="bold"))
        console.print(Text(document["text"]))
    for sample in samples:
        console.print(Text(f"sample at position {sample['position']}: {', '.join(sample['documents'])}", style="bold"))
        console.print(_coloured(sample, tokenizer))


def _fitting(manifest: Manifest) -> str:
    special = manifest.tokenizer.special
    masked = None not in (special.mask, special.cls, special.sep, special.pad)
    return "law-bert-zh" if masked else "law-gpt-zh"


def _document(split: Split, number: int, tokenizer: Tokenizer) -> dict[str, Any]:
    tokens, origin = split.document(number), split.origin(number)
    return {
        "number": number,
        "origin": f"{origin.source}:{origin.number}",
        "text_hash": origin.text_hash,
        "num_tokens": len(tokens),
        "text": tokenizer.decode(tokens.tolist()),
    }


def _samples(data: Data, split: str, first: int, count: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    loader = data.train if split == "train" else next(iter(data.validation), None)
    if loader is None:
        return []
    objective = data.objective if split == "train" else data.fixed_objective
    rows = loader.fetch(np.arange(first, first + count, dtype=np.int64))
    batch, pieces = objective.batch(rows), rows.pieces()
    samples = []
    for row, position in enumerate(rows.positions_B.tolist()):
        stream = loader.corpora[int(rows.corpora_B[row])].samples.stream
        numbers = pieces.documents_P[pieces.rows_P == row].tolist()
        origins = [stream.origin(number) for number in numbers] if isinstance(stream, Split) else []
        inputs, labels = batch["input_ids"][row], batch["labels"][row]
        samples.append(
            {
                "position": position,
                "documents": [f"{origin.source}:{origin.number}" for origin in origins],
                "input_ids": inputs.tolist(),
                "labels": labels.tolist(),
                "input": tokenizer.decode(inputs.tolist(), skip_special_tokens=False),
                "target": tokenizer.decode(labels[labels != IGNORE_INDEX].tolist(), skip_special_tokens=False),
                "masked": "decoder_input_ids" not in batch and not _is_shifted(inputs, labels),
            }
        )
    return samples


def _is_shifted(inputs_S: NDArray[np.int64], labels_S: NDArray[np.int64]) -> bool:
    """Whether the labels are the tokens after the inputs, as a causal model's are."""
    told = labels_S[:-1] != IGNORE_INDEX
    return bool((labels_S[:-1][told] == inputs_S[1:][told]).all())


def _coloured(sample: dict[str, Any], tokenizer: Tokenizer) -> Text:
    """What the model reads; a masked token as what it hides, red behind the mask token, yellow behind a random one,
    green where it stands as it is.
    """
    if not sample["masked"]:
        return Text.assemble(
            sample["input"], *([("\n→ ", "bold"), (sample["target"], "green")] if sample["target"] else [])
        )
    text = Text()
    plain: list[int] = []

    def flush() -> None:
        if plain:
            text.append(tokenizer.decode(plain, skip_special_tokens=False))
            plain.clear()

    mask = tokenizer.token_to_id("[MASK]") or tokenizer.token_to_id("<mask>")
    for token, label in zip(sample["input_ids"], sample["labels"], strict=True):
        if label == IGNORE_INDEX:
            plain.append(token)
            continue
        flush()
        style = "red" if token == mask else "green" if token == label else "yellow"
        shown = tokenizer.decode([label], skip_special_tokens=False)
        random = f"←{tokenizer.decode([token], skip_special_tokens=False)}" if style == "yellow" else ""
        text.append(f"⟦{shown}{random}⟧", style=f"bold {style}")
    flush()
    return text
