"""What `state.json` says of a run: how far it is, in which data, made with what."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from launcher import __version__
from launcher.config.loading import fingerprint
from launcher.config.recipe import Recipe
from launcher.engine.records import Progress
from launcher.samples.cursor import Cursor
from launcher.shards.manifest import Manifest


def run_state(recipe: Recipe, progress: Progress, cursor: Cursor, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Everything a later start, an export and a reader must know, as JSON.

    Args:
        recipe: The run.
        progress: Steps and tokens so far, validations, the precision that was settled on.
        cursor: Where the next step's data begins.
        manifests: Of the corpora, by name.
    """
    return {
        **asdict(progress),
        "cursor": cursor.to_dict(),
        "fingerprint": fingerprint(recipe),
        "data": _describe_data(manifests),
        "versions": _versions(),
    }


def _describe_data(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """What an exported model's card says of its data."""
    training = [manifest.splits["train"] for manifest in manifests.values()]
    validation = [manifest.splits["validation"] for manifest in manifests.values()]
    num_tokens = sum(split.num_tokens for split in validation)
    return {
        "sources": [source.path for manifest in manifests.values() for source in manifest.sources],
        "num_documents": sum(split.num_documents for split in training),
        "num_tokens": sum(split.num_tokens for split in training),
        "num_validation_documents": sum(split.num_documents for split in validation),
        # Of each corpus by itself, in proportion: what guessing by its own frequencies cannot beat.
        "unigram_entropy": sum(split.unigram_entropy * split.num_tokens for split in validation) / max(num_tokens, 1),
    }


def _versions() -> dict[str, str]:
    """Of everything that has a say in the numbers."""
    packages = ("torch", "deepspeed", "transformers", "numpy")
    return {"launcher": __version__, **{name: version(name) for name in packages}}
