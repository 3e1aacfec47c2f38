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


def run_state(recipe: Recipe, progress: Progress, cursor: Cursor, manifest: Manifest) -> dict[str, Any]:
    """Everything a later start, an export and a reader must know, as JSON.

    Args:
        recipe: The run.
        progress: Steps and tokens so far, validations, the precision that was settled on.
        cursor: Where the next step's data begins.
        manifest: Of the shards.
    """
    return {
        **asdict(progress),
        "cursor": cursor.to_dict(),
        "fingerprint": fingerprint(recipe),
        "data": _describe_data(manifest),
        "versions": _versions(),
    }


def _describe_data(manifest: Manifest) -> dict[str, Any]:
    """What an exported model's card says of its data."""
    training, validation = manifest.splits["train"], manifest.splits["validation"]
    return {
        "sources": [source.path for source in manifest.sources],
        "num_documents": training.num_documents,
        "num_tokens": training.num_tokens,
        "num_validation_documents": validation.num_documents,
        "unigram_entropy": validation.unigram_entropy,
    }


def _versions() -> dict[str, str]:
    """Of everything that has a say in the numbers."""
    packages = ("torch", "deepspeed", "transformers", "numpy")
    return {"launcher": __version__, **{name: version(name) for name in packages}}
