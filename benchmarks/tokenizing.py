"""The programs that turn JSONL into tokens beside ours, and the part of a corpus that they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.prepare.tokenizer import TokenizerHandle

WORKERS = 2
STARTUP_DOCUMENTS = 16

Command = list[str | Path]


@dataclass(frozen=True)
class Part:
    """A stretch of the corpus from its beginning, laid out for everybody."""

    whole: Path
    """One file."""
    halves: Path
    """The same in a folder of two files."""
    num_bytes: int


@dataclass(frozen=True)
class Peer:
    """A program and how it is called."""

    key: str
    name: str
    command: Callable[[Part, Path], Command]
    """From its input, and a folder that does not exist yet."""


PACKAGES = {"megatron": "megatron-core", "datatrove": "datatrove", "tokenizers": "tokenizers"}
"""What a peer needs, by its key."""


def peers_of(python: Path, tokenizer: Path, handle: TokenizerHandle, field: str) -> tuple[Peer, ...]:
    """The programs to measure against."""
    end = str(handle.tokenizer.id_to_token(handle.info.special.document_end))
    text, workers = ("--field", field), ("--workers", str(WORKERS))

    def called(module: str, name: Path, *arguments: str | Path) -> Command:
        return [python, "-m", f"benchmarks.peers.{module}", "--tokenizer", name, *text, *workers, *arguments]

    json_file = tokenizer / "tokenizer.json"
    return (
        Peer(
            "megatron",
            "Megatron's loop (tools/preprocess_data.py)",
            lambda part, out: called("megatron_tokenize", tokenizer, "--input", part.whole, "--output-prefix", out),
        ),
        Peer(
            "datatrove",
            "datatrove's DocumentTokenizer",
            lambda part, out: called(
                "datatrove_tokenize", json_file, "--input", part.halves, "--output", out, "--end", end
            ),
        ),
        Peer(
            "tokenizers",
            "orjson and tokenizers' encode_batch_fast",
            lambda part, out: called("batch_encode", json_file, "--input", part.whole, "--output", out, "--end", end),
        ),
    )


def cut_part(corpus: Path, num_bytes: int | None, out: Path) -> Part:
    """The first lines of a corpus: so many bytes of them, or the few that show what a start costs."""
    (out / "halves").mkdir(parents=True)
    lines: list[bytes] = []
    size = 0
    with corpus.open("rb") as file:
        for line in file:
            if size >= num_bytes if num_bytes is not None else len(lines) >= STARTUP_DOCUMENTS:
                break
            lines.append(line)
            size += len(line)
    (out / "part.jsonl").write_bytes(b"".join(lines))
    for number in range(WORKERS):
        (out / "halves" / f"{number}.jsonl").write_bytes(b"".join(lines[number::WORKERS]))
    return Part(out / "part.jsonl", out / "halves", size)
