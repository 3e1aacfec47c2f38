"""The quick start's data, from nothing: corpus, tokenizer, shards; whatever is there is used again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from launcher import units
from launcher.errors import CorpusError, ShardError, TokenizerError
from launcher.prepare.build import build_shards
from launcher.prepare.law_corpus import write_law_corpus
from launcher.prepare.request import BuildRequest
from launcher.prepare.split import is_held_out
from launcher.prepare.texts import read_texts
from launcher.prepare.tokenizer import load_tokenizer, measure_tokenizer
from launcher.prepare.tokenizer_training import train_tokenizer
from launcher.shards.manifest import MANIFEST

QUICKSTART_FOLDER = Path("data/law-zh")
VOCAB_SIZE = 3000


def prepare_quickstart(folder: Path, console: Console | None = None) -> None:
    """Make corpus, tokenizer and shards of the embedded statutes, or find them made.

    Args:
        folder: Gets `corpus.jsonl`, `tokenizer/` and `shards/`.
        console: Where each part says what became of it; stderr without it.

    Raises:
        MissingDependencyError: The package that carries the statutes is not installed.
        ShardError: `shards/` holds something other than shards.
    """
    console = console or Console(stderr=True, markup=False)
    corpus, tokenizer, shards = folder / "corpus.jsonl", folder / "tokenizer", folder / "shards"
    texts = _make_corpus(corpus, console)
    _make_tokenizer(texts, tokenizer, console)
    request = BuildRequest(corpus=(str(corpus),), tokenizer=tokenizer, out=shards)
    try:
        build_shards(request, console)
    except ShardError as error:
        if not (shards / MANIFEST).is_file():
            raise
        # The folder is the quick start's own: what lies in it may be made again.
        console.print(f"shards     {shards}: made again ({error.what})", highlight=False, soft_wrap=True)
        build_shards(replace(request, overwrite=True), console)


def _make_corpus(corpus: Path, console: Console) -> list[str]:
    try:
        texts = _texts(corpus)
        made = "re-used"
    except CorpusError:
        written = write_law_corpus(corpus)
        texts = _texts(corpus)
        made = f"made of {written.num_articles} articles of law"
    num_chars = sum(len(text) for text in texts)
    console.print(
        f"corpus     {corpus}: {made}; {len(texts)} documents, {units.count(num_chars)} characters",
        highlight=False,
        soft_wrap=True,
    )
    return texts


def _texts(corpus: Path) -> list[str]:
    texts = list(read_texts([str(corpus)]))
    if not texts:
        raise CorpusError("the file is empty", str(corpus), "delete it")
    return texts


def _make_tokenizer(texts: list[str], folder: Path, console: Console) -> None:
    try:
        handle = load_tokenizer(folder)
        made = "re-used"
    except TokenizerError:
        handle = train_tokenizer((text for text in texts if not is_held_out(text)), "wordpiece", VOCAB_SIZE, folder)
        made = "trained on what is not held out"
    held_out = [text for text in texts if is_held_out(text)]
    report = measure_tokenizer(handle, held_out)
    console.print(
        f"tokenizer  {folder}: {made}; vocabulary {handle.info.vocab_size}; on {len(held_out)} held-out documents "
        f"{report.tokens_per_byte:.3f} tokens a byte, {report.unknown_share:.2%} unknown",
        highlight=False,
        soft_wrap=True,
    )
