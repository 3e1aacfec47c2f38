"""megatron-core reads what is written here, and what it writes is read here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from token_shards import random_documents, write_shards

from launcher.prepare.adopt import adopt
from launcher.shards.reader import open_split
from launcher.shards.verify import verify

DOCUMENTS = random_documents(60, 12, vocab_size=150)


@pytest.fixture(scope="module")
def indexed_dataset() -> Any:
    try:
        from megatron.core.datasets import indexed_dataset
    except ImportError:
        if os.environ.get("REQUIRE_CLUSTER"):  # the gate installs it
            raise
        pytest.skip("needs megatron-core: pip install --no-deps megatron-core")
    return indexed_dataset


@pytest.mark.parametrize("vocab_size", [300, 70_000], ids=["uint16", "int32"])
@pytest.mark.parametrize("sentence_length", [None, 5], ids=["documents", "sentences"])
def test_megatron_reads_ours(
    indexed_dataset: Any, tmp_path: Path, vocab_size: int, sentence_length: int | None
) -> None:
    write_shards(tmp_path / "shards", DOCUMENTS, vocab_size=vocab_size, sentence_length=sentence_length)
    dataset = indexed_dataset.IndexedDataset(str(tmp_path / "shards" / "train-00000"), mmap=True)
    marks = dataset.document_indices
    assert len(marks) - 1 == len(DOCUMENTS)
    for number, document in enumerate(DOCUMENTS):
        sequences = [dataset[index] for index in range(marks[number], marks[number + 1])]
        assert np.concatenate(sequences).tolist() == document
        assert len(sequences) == (1 if sentence_length is None else -(-len(document) // sentence_length))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_we_read_megatrons(indexed_dataset: Any, tmp_path: Path, dtype: type, shards: Path) -> None:
    import torch

    prefix = str(tmp_path / "theirs_text_document")
    builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in DOCUMENTS:
        halves = (document[: len(document) // 2], document[len(document) // 2 :])
        for sentence in halves:
            if sentence:
                builder.add_item(torch.tensor(sentence))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    adopt([Path(f"{prefix}.bin")], [], shards / "tokenizer", tmp_path / "out")
    assert verify(tmp_path / "out") == []
    split = open_split(tmp_path / "out", "train")
    assert [split.document(number).tolist() for number in range(split.num_documents)] == DOCUMENTS
