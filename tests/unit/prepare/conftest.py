"""A small corpus, a tokenizer trained on it, and a build of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.prepare.request import BuildRequest
from launcher.prepare.tokenizer_training import train_tokenizer

TEXTS = [f"第{number}条　公民的合法权益受法律保护，条文{number * 7}。Law {number} applies." for number in range(120)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"completion": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / "wordpiece"
    train_tokenizer(TEXTS, "wordpiece", 300, folder)
    return folder


@pytest.fixture
def request_(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> BuildRequest:
    """Builds the corpus in several parts, in this process."""
    return BuildRequest(
        corpus=(str(corpus),),
        tokenizer=tokenizer_folder,
        out=tmp_path / "shards",
        workers=1,
        validation_share=0.2,
        part_bytes=3000,
    )
