"""What is exported, and how; for `ranks.run_ranks`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def export_and_count(run: str, out: str, shard_bytes: int) -> int:
    """Export; the most bytes of weights that were read from the checkpoint and held at one moment."""
    import weakref

    import torch

    from launcher.checkpoint.load import CheckpointReader
    from launcher.export import export_run

    held: dict[int, int] = {}
    most = 0
    plain = CheckpointReader.read_whole

    def read_whole(self: CheckpointReader, name: str, key: str = "master") -> torch.Tensor:
        nonlocal most
        tensor = plain(self, name, key)
        held[id(tensor)] = tensor.numel() * tensor.element_size()
        weakref.finalize(tensor, held.pop, id(tensor))
        most = max(most, sum(held.values()))
        return tensor

    CheckpointReader.read_whole = read_whole  # type: ignore[method-assign]
    export_run(Path(run), Path(out), shard_bytes=shard_bytes)
    return most


def exported_logits(folder: str, head: str, inputs: dict[str, Any]) -> Any:
    """What the exported folder answers to the same inputs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    auto = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}[head]
    model = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy().copy()


def weights_file(folder: str) -> str:
    """Hash of an exported model's weights."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()
