"""JSONL to shards, two processes: `pretrain prepare` against Megatron's loop, datatrove and `tokenizers` itself.

    python -m benchmarks.prepare --corpus FILE.jsonl [--peer-python PATH] [--peer-megabytes 64] [--json]

Every side is a program started anew, and its time is the wall's from start to exit. Ours reads the whole corpus, its
search for an exact encoder included (with an empty cache); the peers would take many minutes, so they read the first
`--peer-megabytes` of it: the time of their start (measured on 16 documents) and their rate behind it make their time
for the whole corpus, which is what the ratio is of. `pretrain prepare` also writes checksums and the origin of every
document; the peers do not. Ids are held against `tokenizers` on every document of the corpus.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.rounds import Timing, Value, add_peer_python, compared, in_turn, installed, run
from benchmarks.support import TEXT_FIELDS, Ratio, parser, read_texts, show
from benchmarks.tokenizing import PACKAGES, WORKERS, Command, Part, cut_part, peers_of
from launcher.prepare.tokenizer import load_tokenizer, save_tokenizer
from launcher.prepare.tokenizer_training import train_tokenizer
from launcher.shards.reader import open_split

VOCABULARY = {"bpe": 32_000, "wordpiece": 30_000}
TRAINING_TEXTS = 6_000
CHECK_BATCH = 1000
BARS = {("bpe", "megatron"): 12.0, ("bpe", "datatrove"): 4.0, ("wordpiece", "tokenizers"): 6.0}
FALLBACK_BAR = 0.9
OURS = ["-c", "import sys; from launcher.cli import main; sys.exit(main())", "prepare"]


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, rounds=3)
    add_peer_python(made)
    made.add_argument("--peer-megabytes", type=int, default=64, metavar="N", help="what the peers read (default 64)")
    made.add_argument("--kinds", nargs="+", choices=VOCABULARY, default=list(VOCABULARY))
    made.add_argument("--bpe", type=Path, metavar="DIR", help="tokenizer; trained on the corpus if left out")
    made.add_argument("--wordpiece", type=Path, metavar="DIR", help="tokenizer; trained on the corpus if left out")
    made.add_argument("--only-fallback", action="store_true", help="the fallback encoder, which wants more rounds")
    options = made.parse_args()
    if options.corpus is None:
        made.error("give --corpus FILE; benchmarks.make_corpus makes one")
    results: list[Ratio | Value] = []
    with tempfile.TemporaryDirectory(dir=options.corpus.parent) as name:  # beside the corpus: one disk for all
        scratch = Path(name)
        part = cut_part(options.corpus, options.peer_megabytes * 10**6, scratch / "part")
        start = cut_part(options.corpus, None, scratch / "start")
        present = [key for key, package in PACKAGES.items() if installed(options.peer_python, package)]
        for kind in options.kinds:
            given = {"bpe": options.bpe, "wordpiece": options.wordpiece}[kind]
            bench = Bench(kind, options.corpus, part, start, scratch / kind, given, options.peer_python, present)
            if not options.only_fallback:
                results += bench.against_peers(options.rounds)
            if "tokenizers" in present:
                results.append(bench.fallback(options.rounds))
            if options.only_fallback:
                continue
            results.append(bench.equal_ids())
            results += bench.sizes()
    settings = {
        "corpus_mb": round(options.corpus.stat().st_size / 1e6, 1),
        "peers_mb": round(part.num_bytes / 1e6, 1),
        "processes": WORKERS,
    }
    show("prepare", results, as_json=options.json, packages=("numpy", "tokenizers", "orjson"), settings=settings)


class Bench:
    """One kind of tokenizer."""

    def __init__(
        self,
        kind: str,
        corpus: Path,
        part: Part,
        start: Part,
        scratch: Path,
        given: Path | None,
        python: Path,
        present: Sequence[str],
    ) -> None:
        self.kind, self.corpus, self.part, self.start, self.scratch = kind, corpus, part, start, scratch
        scratch.mkdir()
        if given is None:
            texts = read_texts(corpus, TRAINING_TEXTS)
            self.handle = train_tokenizer(texts, kind, VOCABULARY[kind], scratch / "tokenizer")
        else:
            self.handle = load_tokenizer(given)
            save_tokenizer(self.handle, scratch / "tokenizer")
        self.field = text_field(corpus)
        self._runs = 0
        self._shards: Path | None = None
        self._startup: dict[str, Timing] = {}
        self.peers = peers_of(python, scratch / "tokenizer", self.handle, self.field)
        self.peers = tuple(peer for peer in self.peers if peer.key in present)

    def against_peers(self, rounds: int) -> list[Ratio | Value]:
        """Ours and all peers, in turn."""
        corpus_bytes = self.corpus.stat().st_size
        scale = (corpus_bytes - self.start.num_bytes) / (self.part.num_bytes - self.start.num_bytes)
        self._startup = {peer.key: run(peer.command(self.start, self._new())) for peer in self.peers}
        ours: list[Timing] = []
        theirs: dict[str, list[Timing]] = {peer.key: [] for peer in self.peers}
        for _ in range(rounds):
            self._shards = self._new()
            ours.append(run(self.prepare(self.corpus, self._shards, WORKERS), XDG_CACHE_HOME=str(self._new())))
            for peer in self.peers:
                begun, took = self._startup[peer.key], run(peer.command(self.part, self._new()))
                whole = tuple(b + (t - b) * scale for b, t in zip(begun, took, strict=True))
                theirs[peer.key].append((whole[0], whole[1]))
        return [
            compared(f"prepare {self.kind}", ours, peer.name, theirs[peer.key], bar=BARS.get((self.kind, peer.key)))
            for peer in self.peers
        ]

    def fallback(self, rounds: int) -> Ratio:
        """Our use of `tokenizers` in one process, reading and writing included, against its bare loop, in cpu time."""
        bare = [*next(peer for peer in self.peers if peer.key == "tokenizers").command(self.part, self._new())]
        bare[bare.index("--workers") + 1] = "1"
        ours = self.prepare(self.part.whole, self._new(), 1, "--encoder", "tokenizers", "--overwrite")
        return in_turn(
            f"fallback encoder, {self.kind}",
            partial(run, ours),
            "a bare encode_batch_fast loop that writes nothing",
            partial(run, [*bare, "--discard"]),
            rounds,
            by="cpu",
            bar=FALLBACK_BAR,
        )

    def equal_ids(self) -> Value:
        """Share of the documents of the whole corpus that have the ids of `tokenizers`."""
        assert self._shards is not None
        split = open_split(self._shards, "train")
        tokenizer = Tokenizer.from_file(str(self.scratch / "tokenizer" / "tokenizer.json"))
        tokenizer.encode_special_tokens = True  # a text that spells one out does not get it
        end = self.handle.info.special.document_end
        equal = documents = 0
        for texts in batches(self.corpus, self.field):
            starts = split.document_starts(documents, min(documents + len(texts), split.num_documents))
            stream = np.empty(starts[-1] - starts[0], dtype=np.int32)
            split.read(int(starts[0]), stream)
            found = np.split(stream, starts[1:-1] - starts[0])
            for encoding, ids in zip(tokenizer.encode_batch_fast(texts, add_special_tokens=False), found, strict=False):
                equal += np.array_equal(ids, np.array([*encoding.ids, end], dtype=np.int32))
            documents += len(texts)
        share = equal / max(documents, split.num_documents)
        return Value(f"ids equal to `tokenizers`, {self.kind}, of {documents} documents", share, "", 1.0, at_most=False)

    def sizes(self) -> list[Value]:
        """What the run was made of."""
        assert self._shards is not None
        split = open_split(self._shards, "train")
        told = [Value(f"{self.kind}: {split.manifest.encoder}; tokens", split.num_tokens, "")]
        for key, (wall_s, _) in self._startup.items():
            told.append(Value(f"{self.kind}: start of {key}", wall_s, "s"))
        return told

    def prepare(self, corpus: Path, out: Path, workers: int, *more: str) -> Command:
        """Our command."""
        settings = ["--text-field", self.field, "--validation-share", "0", "--workers", str(workers)]
        return [
            sys.executable,
            *OURS,
            corpus,
            "--tokenizer",
            self.scratch / "tokenizer",
            "--out",
            out,
            *settings,
            *more,
        ]

    def _new(self) -> Path:
        self._runs += 1
        return self.scratch / f"run-{self._runs}"


def batches(corpus: Path, field: str) -> Iterator[Sequence[str]]:
    """All texts of a corpus."""
    texts: list[str] = []
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)[field])
            if len(texts) == CHECK_BATCH:
                yield texts
                texts = []
    if texts:
        yield texts


def text_field(corpus: Path) -> str:
    """The field that holds the text."""
    with corpus.open(encoding="utf-8") as lines:
        record = json.loads(next(lines))
    return next(name for name in TEXT_FIELDS if name in record)


if __name__ == "__main__":
    main()
