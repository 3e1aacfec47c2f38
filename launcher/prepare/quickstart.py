"""The quick start's data, from nothing: corpus, tokenizer, shards; whatever is there is used again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console

from launcher import units
from launcher.errors import TokenizerError
from launcher.prepare.build import BuildRequest, build_shards
from launcher.prepare.documents import find_files, read_documents
from launcher.prepare.law_corpus import write_law_corpus
from launcher.prepare.split import is_held_out
from launcher.prepare.tokenizer import load_tokenizer, measure_tokenizer
from launcher.prepare.tokenizer_training import train_tokenizer

QUICKSTART_FOLDER = Path("data/law-zh")
VOCAB_SIZE = 3000


def prepare_quickstart(folder: Path, console: Console | None = None) -> None:
    """Make corpus, tokenizer and shards of the embedded statutes, or find them made.

    Args:
        folder: Gets `corpus.jsonl`, `tokenizer/` and `shards/`.
        console: Where each part says what became of it; stderr without it.

    Raises:
        MissingDependencyError: The package that carries the statutes is not installed.
        ShardError: `shards/` was made from something else.
    """
    console = console or Console(stderr=True)
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer"
    _make_corpus(corpus, console)
    _make_tokenizer(corpus, tokenizer, console)
    build_shards(BuildRequest(corpus=(str(corpus),), tokenizer=tokenizer, out=folder / "shards"), console)


def _make_corpus(corpus: Path, console: Console) -> None:
    if corpus.is_file():
        console.print(f"corpus     {corpus}: {units.size(corpus.stat().st_size)}, re-used", highlight=False)
        return
    made = write_law_corpus(corpus)
    console.print(
        f"corpus     {corpus}: {made.num_documents} laws, {made.num_articles} articles, {units.count(made.num_chars)} characters",
        highlight=False,
    )


def _make_tokenizer(corpus: Path, folder: Path, console: Console) -> None:
    try:
        handle = load_tokenizer(folder)
        console.print(f"tokenizer  {folder}: {handle.info.vocab_size} tokens, re-used", highlight=False)
        return
    except TokenizerError:
        pass
    texts = [document.text for document in read_documents(find_files([str(corpus)]), "completion", Counter())]
    held_out = [text for text in texts if is_held_out(text)]
    handle = train_tokenizer((text for text in texts if not is_held_out(text)), "wordpiece", VOCAB_SIZE, folder)
    report = measure_tokenizer(handle, held_out)
    console.print(
        f"tokenizer  {folder}: {handle.info.vocab_size} tokens, trained on what is not held out; on the rest "
        f"{report.tokens_per_byte:.2f} tokens a byte, {report.unknown_share:.2%} unknown",
        highlight=False,
    )
