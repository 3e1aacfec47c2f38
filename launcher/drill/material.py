"""What a drill trains on and with: a corpus, tokenizer, shards and recipe of a few kilobytes, made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

NUM_DOCUMENTS = 200
SYLLABLES = ["ka", "lo", "mi", "ne", "su", "ta", "vi", "ro", "de", "pa"]


def make_shards(folder: Path) -> Path:
    """Shards of a made-up language in `folder/shards`, made once."""
    from launcher.prepare.build import build_shards
    from launcher.prepare.request import BuildRequest
    from launcher.prepare.tokenizer_training import train_tokenizer

    out = folder / "shards"
    if (out / "manifest.json").exists():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(5)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(60)]
    texts = [" ".join(rng.choices(words, k=rng.randint(30, 90))) for _ in range(NUM_DOCUMENTS)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"completion": text}) + "\n" for text in texts), encoding="utf-8")
    train_tokenizer(texts, "bpe", 400, folder / "tokenizer")
    request = BuildRequest(
        corpus=(str(corpus),), tokenizer=folder / "tokenizer", out=out, validation_share=0.1, workers=1
    )
    build_shards(request, Console(quiet=True))
    return out


def recipe_tree(name: str, shards: Path, runs: Path, **guards: Any) -> dict[str, Any]:
    """A recipe of a few hundred short steps, saved every 40.

    Args:
        name: Of the run.
        shards: From `make_shards`.
        runs: Folder of the runs' folders.
        guards: Fields of `guards`.
    """
    return {
        "name": name,
        "runs": str(runs),
        "data": {"shards": str(shards), "seq_len": 32},
        "objective": {"kind": "clm"},
        "model": {
            "family": "gpt2",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
        "batch": {"global_batch": 8},
        "optim": {"lr": 1.0e-3},
        "schedule": {"warmup_steps": 10},
        "train": {"num_steps": 200, "precision": "fp32", "seed": 1},
        "eval": {"max_samples": 16, "micro_batch": 4},
        "checkpoint": {"every_steps": 40, "keep_last": 3, "retry_s": 2.0},
        "guards": guards,
    }


def write_recipe(path: Path, tree: dict[str, Any]) -> Path:
    """Write a recipe file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
