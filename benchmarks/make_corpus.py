"""A corpus of any size from texts at hand: their sentences put together anew, no document twice.

    python -m benchmarks.make_corpus --out corpus.jsonl --megabytes 250 [--text zh.jsonl …] [--text-dir site-packages …]

`--text` takes JSON lines or one JSON array; `--text-dir` takes what prose lies in a folder of installed packages:
docstrings, licences, reStructuredText, Markdown. Sentences stay among those of their language, and half of the bytes go
to each, where there are both. A document's length is log-normal with the mean of Chinese Wikipedia's, 535 tokens
(measured with a WordPiece vocabulary). The same texts, seed and size give the same bytes.

What such a corpus is not: text that never repeats. A sentence comes back about as often as the corpus is larger than
the texts (printed), which favours every encoder that remembers what it has seen, ours and the peers' alike. Run
`benchmarks.prepare` on a corpus of your own to see what that is worth.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from benchmarks.support import TEXT_FIELDS

MEAN_TOKENS, SIGMA = 535, 1.0
"""Of documents; the spread is an assumption: the middle half has 190 to 650 tokens."""
LATIN_CHARS_PER_TOKEN = 4.3
"""Of English under a vocabulary of 30,000 to 50,000 (assumption); a Chinese character is about a token."""
MAX_SENTENCE = 1000
PARAGRAPH = 6
"""Sentences between two ends of paragraphs, in the mean."""
DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)
CHINESE = re.compile(r"[\u3400-\u9fff]")
ENDS = {"zh": re.compile(r"(?<=[。！？；])|\n"), "en": re.compile(r"(?<=[.!?:])\s+|\n\s*\n")}
PROSE = (".rst", ".md")


@dataclass(frozen=True, slots=True)
class Language:
    """The sentences of a language."""

    name: str
    sentences: Sequence[str]
    tokens: Sequence[int]
    """About how many tokens each sentence has."""
    glue: str


def main() -> None:
    """Read, recombine, write."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines to write")
    made.add_argument("--megabytes", type=int, default=250, metavar="N", help="size (default 250)")
    made.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help="JSON lines or a JSON array")
    made.add_argument("--text-field", metavar="FIELD", help=f"default: the first of {', '.join(TEXT_FIELDS)}")
    made.add_argument("--text-dir", type=Path, nargs="+", default=[], metavar="DIR", help="installed packages")
    made.add_argument("--field", default="completion", metavar="FIELD", help="to write (default completion)")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    options = made.parse_args()
    texts = [text for path in options.text for text in read_records(path, options.text_field)]
    texts += [text for folder in options.text_dir for text in read_prose(folder)]
    languages = sorted_by_language(texts)
    if not languages:
        made.error("there is no sentence to begin with: give --text or --text-dir")
    given = {language.name: sum(map(len_utf8, language.sentences)) for language in languages}
    counts = write(options.out, languages, options.megabytes * 10**6, options.field, random.Random(options.seed))
    for language in languages:
        written = options.megabytes * 10**6 / len(languages)
        again = written / given[language.name]
        print(
            f"{language.name}: {counts[language.name]} documents from {len(language.sentences)} sentences"
            f" ({given[language.name] / 1e6:.1f} MB), each used {again:.1f} times"
        )
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


def read_records(path: Path, field: str | None) -> Iterator[str]:
    """The texts of JSON lines, or of one array."""
    raw = path.read_text(encoding="utf-8")
    records = json.loads(raw) if raw.lstrip().startswith("[") else map(json.loads, raw.splitlines())
    for record in records:
        text = record[field] if field else next(record[name] for name in TEXT_FIELDS if name in record)
        if isinstance(text, str):
            yield text


def read_prose(folder: Path) -> Iterator[str]:
    """Docstrings of Python files, licences, reStructuredText and Markdown, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        if path.suffix == ".py":
            yield from DOCSTRING.findall(_read(path))
        elif path.suffix in PROSE or path.name.startswith("LICENSE"):
            yield _read(path)


def sorted_by_language(texts: Sequence[str]) -> list[Language]:
    """Sentences, each once, in the order they were read."""
    found: dict[str, dict[str, None]] = {"zh": {}, "en": {}}
    for text in texts:
        name = "zh" if len(CHINESE.findall(text[:2000])) > len(text[:2000]) / 5 else "en"
        for sentence in ENDS[name].split(text):
            sentence = " ".join(sentence.split())
            if 8 <= len(sentence) <= MAX_SENTENCE and _is_prose(sentence):
                found[name][sentence] = None
    return [
        Language(
            name=name,
            sentences=list(sentences),
            tokens=[_num_tokens(sentence) for sentence in sentences],
            glue="" if name == "zh" else " ",
        )
        for name, sentences in found.items()
        if sentences
    ]


def write(out: Path, languages: Sequence[Language], num_bytes: int, field: str, rng: random.Random) -> dict[str, int]:
    """Write documents until the file is large enough; how many of each language."""
    mu = math.log(MEAN_TOKENS) - SIGMA**2 / 2
    seen: set[int] = set()
    counts = dict.fromkeys((language.name for language in languages), 0)
    written = dict.fromkeys(counts, 0)
    with out.open("w", encoding="utf-8") as file:
        while sum(written.values()) < num_bytes:
            language = min(languages, key=lambda candidate: written[candidate.name])
            text = _document(language, rng.lognormvariate(mu, SIGMA), rng)
            key = xxhash.xxh3_64_intdigest(text.encode())
            if key in seen:
                continue
            seen.add(key)
            line = json.dumps({field: text, "source": f"recombined.{language.name}"}, ensure_ascii=False) + "\n"
            file.write(line)
            counts[language.name] += 1
            written[language.name] += len_utf8(line)
    return counts


def len_utf8(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text.encode())


def _document(language: Language, wanted: float, rng: random.Random) -> str:
    parts: list[str] = []
    while wanted > 0:
        chosen = int(rng.random() * len(language.sentences))
        parts.append(language.sentences[chosen])
        parts.append("\n" if rng.random() * PARAGRAPH < 1 else language.glue)
        wanted -= language.tokens[chosen]
    return "".join(parts[:-1])


def _num_tokens(sentence: str) -> int:
    chinese = len(CHINESE.findall(sentence))
    return 1 + chinese + int((len(sentence) - chinese) / LATIN_CHARS_PER_TOKEN)


def _is_prose(sentence: str) -> bool:
    """No tables, rules or code: mostly letters."""
    return sum(character.isalpha() for character in sentence) > 0.6 * len(sentence)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


if __name__ == "__main__":
    main()
