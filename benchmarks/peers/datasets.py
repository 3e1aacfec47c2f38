"""Token datasets of other programs, over the tokens of one Megatron `.bin`/`.idx`: a process that is asked to serve.

Each serves batches of rows in an order of its own shuffling, collated by torch, int64, in this process (no workers).
mosaicml-streaming imports torchvision for its image datasets; where that is missing, a stand-in is imported for it.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import sys
import time
import types
import zlib
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from benchmarks.rounds import answer

END, VOCAB_SIZE = 3, 50_000
Serve = Callable[[], object]


def megatron(prefix: Path, length: int, num_rows: int, num_samples: int | None = None) -> Serve:
    """megatron-core's GPTDataset, without the attention mask that it can leave out."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    facts = {"unique_identifiers": {"class": "none"}, "eod": END, "pad": 0, "vocab_size": VOCAB_SIZE}
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=length,
        split="1",
        tokenizer=type("Tokenizer", (), facts)(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(prefix.parent / "megatron"),
    )
    indexed = IndexedDataset(str(prefix), mmap=True)
    documents = np.arange(len(indexed.document_indices) - 1, dtype=np.int32)
    dataset = GPTDataset(indexed, str(prefix), documents, num_samples, Split.train, config)
    places = itertools.cycle(range(0, len(dataset) - num_rows, num_rows))

    def serve() -> object:
        first = next(places)
        return default_collate([dataset[index] for index in range(first, first + num_rows)])

    return serve


def datatrove(prefix: Path, length: int, num_rows: int) -> Serve:
    """DatatroveFolderDataset; it does not shuffle windows, so it is given a permutation."""
    from datatrove.utils.dataset import DatatroveFolderDataset

    folder = _fresh(prefix.parent / "datatrove")
    shutil.copy(prefix.with_suffix(".bin"), folder / "tokens.ds")
    dataset = DatatroveFolderDataset(str(folder), seq_len=length - 1, token_size=2)  # it returns one token more
    order = np.random.default_rng(1).permutation(len(dataset)).tolist()
    places = itertools.cycle(range(0, len(order) - num_rows, num_rows))

    def serve() -> object:
        first = next(places)
        return default_collate([dataset[index] for index in order[first : first + num_rows]])

    return serve


def litdata(prefix: Path, length: int, num_rows: int) -> Serve:
    """StreamingDataset with TokensLoader, shuffled; chunks of 64 MB, its default."""
    from litdata import StreamingDataset
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    folder = _fresh(prefix.parent / "litdata")
    tokens = np.fromfile(prefix.with_suffix(".bin"), dtype=np.uint16)
    writer = BinaryWriter(str(folder), chunk_bytes=64 << 20, item_loader=TokensLoader(length))
    pieces = range(0, len(tokens) - length, 1 << 16)
    for number, start in enumerate(pieces):
        writer[number] = torch.from_numpy(tokens[start : start + (1 << 16)].astype(np.int32))
    writer.done()
    writer.merge(1)
    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=length), shuffle=True, seed=1)
    return _batches(lambda: iter(dataset), num_rows)


def streaming(prefix: Path, length: int, num_rows: int) -> Serve:
    """mosaicml-streaming's StreamingDataset over MDS shards of rows, shuffled."""
    _stand_in_for_torchvision()
    from streaming import MDSWriter, StreamingDataset

    folder = _fresh(prefix.parent / "streaming")
    tokens = np.fromfile(prefix.with_suffix(".bin"), dtype=np.uint16)
    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{length}"}, progress_bar=False) as writer:
        for row in tokens[: len(tokens) // length * length].reshape(-1, length):
            writer.write({"tokens": row})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=num_rows, num_canonical_nodes=1)
    return _batches(lambda: (torch.from_numpy(sample["tokens"].astype(np.int64)) for sample in dataset), num_rows)


DATASETS: dict[str, tuple[str, Callable[..., Serve]]] = {
    "megatron": ("megatron-core", megatron),
    "litdata": ("litdata", litdata),
    "datatrove": ("datatrove", datatrove),
    "streaming": ("mosaicml-streaming", streaming),
}
"""By name: the package, and what opens it."""


def main() -> None:
    """Import, say so, and serve what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", choices=DATASETS)
    name = parser.parse_args().dataset
    package, opener = DATASETS[name]
    torch.set_num_threads(1)
    opened: list[Serve] = []

    def open_(prefix: str, length: int, num_rows: int, **more: Any) -> dict[str, Any]:
        memory, cpu, wall = _memory_mb(), time.process_time(), time.perf_counter()
        opened[:] = [opener(Path(prefix), length, num_rows, **more)]
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall_s": wall_s, "cpu_s": cpu_s, "memory_mb": _memory_mb() - memory}

    def serve(num_batches: int) -> dict[str, Any]:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(num_batches):
            opened[0]()
        return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}

    def first(count: int) -> dict[str, Any]:
        return {"sums": [zlib.crc32(np.asarray(opened[0]()["tokens"]).tobytes()) for _ in range(count)]}  # type: ignore[index]

    answer({"name": f"{package} {metadata.version(package)}"}, {"open": open_, "serve": serve, "first": first})


def _batches(rows: Callable[[], Iterator[Any]], num_rows: int) -> Serve:
    endless = itertools.chain.from_iterable(rows() for _ in itertools.count())

    def serve() -> object:
        return default_collate([torch.as_tensor(next(endless)).long() for _ in range(num_rows)])

    return serve


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _stand_in_for_torchvision() -> None:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        names = {
            "torchvision": (),
            "torchvision.datasets": ("VisionDataset",),
            "torchvision.transforms": (),
            "torchvision.transforms.functional": ("to_tensor",),
        }
        for name, members in names.items():
            module = types.ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            for member in members:
                setattr(module, member, type(member, (), {}))
            sys.modules[name] = module


if __name__ == "__main__":
    main()
