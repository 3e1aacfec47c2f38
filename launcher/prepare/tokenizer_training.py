"""Training a tokenizer that serves every objective: with a mask token, sentinels, and ends of documents."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordPiece

from launcher import units
from launcher.errors import CorpusError, LauncherError, TokenizerError
from launcher.prepare.encoders import one_thread
from launcher.prepare.progress import going_on
from launcher.prepare.tokenizer import (
    FILL_IN,
    MODES,
    TokenizerHandle,
    bert_template,
    describe_tokenizer,
    save_tokenizer,
)

# T5's 100: enough for sequences of 1,700 tokens at density 0.15 and mean span 3.
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNIGRAM_S = 32e-6
"""Of one core, for a byte of text (measured, AMD EPYC: 240 s for 7 MB of Chinese, 19 s for 0.6 MB of Chinese and
English)."""
OWN_FILES = {"tokenizer.json", "tokenizer_config.json"}
OTHER_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
# Tokens of bpe vocabularies for filling in the middle, and of bpe and unigram for UL2, behind the sentinels. A
# wordpiece vocabulary, which is made for masked models, has neither.
FILL_IN_SPECIALS = tuple(names[0] for names in FILL_IN.values())
MODE_SPECIALS = tuple(names[0] for names in MODES)


def train_tokenizer(
    texts: Iterable[str], kind: str, vocab_size: int, out: Path, console: Console | None = None
) -> TokenizerHandle:
    """Train a tokenizer and save it as a `transformers` folder.

    The same texts in the same order give the same bytes, but for `unigram`, whose trainer in the Rust library sums in
    the random order of a hash map. Where a `wordpiece` vocabulary has no room for every character, the rarest are left
    out and become the unknown token.

    Args:
        texts: Documents.
        kind: `wordpiece`, `bpe` or `unigram`.
        vocab_size: Ids, special tokens included.
        out: Folder to write; it appears under its name when it is complete.
        console: Where it is said how far it is; nowhere without it.

    Raises:
        CorpusError: There is no text.
        TokenizerError: The kind is unknown, `out` has no name of its own or holds something other than a tokenizer, or
            the vocabulary has no room for words.
    """
    if kind not in TRAINERS:
        raise TokenizerError(f"there is no tokenizer kind {kind!r}", "--kind", f"use one of: {', '.join(TRAINERS)}")
    if out.name in ("", ".."):  # it is written beside its place and renamed
        raise TokenizerError(f"{str(out)!r} names no folder to make", "--out", "give the folder's name")
    if out.is_file() or (out.is_dir() and not {path.name for path in out.iterdir()} <= OWN_FILES):
        raise TokenizerError("there is something else under this name, not a tokenizer", str(out), "give another --out")
    least = LEAST[kind]
    if vocab_size < least:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} has no room for words", "--vocab-size", f"use {least} at the very least"
        )
    console = console or Console(quiet=True, force_terminal=False)
    # Rust threads merge counts in any order, and ties in the counts then fall either way.
    with one_thread(), going_on(f"training {kind}", console):
        tokenizer = TRAINERS[kind](_some(texts, kind, console), vocab_size, console.is_terminal)
    handle = describe_tokenizer(tokenizer, out.resolve().name)
    out.parent.mkdir(parents=True, exist_ok=True)
    saving = out.with_name(f".{out.name}.saving")
    shutil.rmtree(saving, ignore_errors=True)
    save_tokenizer(handle, saving)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(saving, out)
    return handle


def _some(texts: Iterable[str], kind: str, console: Console) -> Iterator[str]:
    """The texts, and behind the last how much they were; raises CorpusError where none was."""
    text, num_bytes = None, 0
    for text in texts:
        num_bytes += len(text.encode())
        yield text
    if text is None:
        raise CorpusError("there is no text to train on", "corpus", "check the files and the text field")
    lasts = f"; it takes about {units.duration(num_bytes * UNIGRAM_S)}" if kind == "unigram" else ""
    console.print(f"training {kind} on {units.size(num_bytes)} of text{lasts}", highlight=False, soft_wrap=True)


def _wordpiece(texts: Iterable[str], vocab_size: int, show_progress: bool) -> Tokenizer:
    """Trained twice: the library numbers the `##x` of single characters in the random order of a hash map, and breaks
    ties by number. The first pass only finds them; the second is given them, sorted, as if they were special.
    """
    texts = list(texts)
    finder = _untrained_wordpiece({})
    finder.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=1, show_progress=show_progress))
    room = vocab_size - len(BERT_SPECIALS) - len(SENTINELS)
    alphabet, parts = _alphabet(texts, finder.get_vocab(), room)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*BERT_SPECIALS, *SENTINELS, *parts],
        # Without a limit the library takes every character, whatever `vocab_size` says.
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=show_progress,
    )
    trained = _untrained_wordpiece({})
    trained.train_from_iterator(texts, trainer)
    tokenizer = _untrained_wordpiece(trained.get_vocab())
    tokenizer.add_special_tokens(_special((*BERT_SPECIALS, *SENTINELS)))
    # The trainer numbers special tokens in the order it is given them.
    tokenizer.post_processor = bert_template(BERT_SPECIALS.index("[CLS]"), BERT_SPECIALS.index("[SEP]"))
    return tokenizer


def _alphabet(texts: list[str], found: Iterable[str], room: int) -> tuple[list[str], list[str]]:
    """The characters, and their `##x`, that go into a vocabulary with `room` ids: the most frequent ones, sorted."""
    tokens = set(found)
    frequencies: Counter[str] = Counter()
    for text in texts:
        frequencies.update(text)
    alphabet, parts = [], []
    for character in sorted((token for token in tokens if len(token) == 1), key=lambda c: (-frequencies[c], c)):
        part = f"##{character}"
        room -= 1 + (part in tokens)
        if room < 0:
            break
        alphabet.append(character)
        if part in tokens:
            parts.append(part)
    return sorted(alphabet), sorted(parts)


def _untrained_wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _bpe(texts: Iterable[str], vocab_size: int, show_progress: bool) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_special((*OTHER_SPECIALS, *SENTINELS, *MODE_SPECIALS, *FILL_IN_SPECIALS)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts: Iterable[str], vocab_size: int, show_progress: bool) -> Tokenizer:
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=_special((*OTHER_SPECIALS, *SENTINELS, *MODE_SPECIALS)),
        unk_token="<unk>",
        show_progress=show_progress,
    )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except LauncherError:  # of reading the texts
        raise
    except Exception as error:  # the Rust library raises bare Exceptions
        if "contain all chars" not in str(error):
            raise
        raise _too_few_for_characters(vocab_size) from None
    if tokenizer.get_vocab_size() > vocab_size:  # the library forgets to count the special tokens
        raise _too_few_for_characters(vocab_size)
    return tokenizer


def _too_few_for_characters(vocab_size: int) -> TokenizerError:
    return TokenizerError(
        f"a vocabulary of {vocab_size} has no room for every character of the text",
        "--vocab-size",
        "use a larger one, or --kind bpe, which needs the 256 bytes only",
    )


def _special(names: tuple[str, ...]) -> list[AddedToken]:
    return [AddedToken(name, special=True) for name in names]


TRAINERS: dict[str, Callable[[Iterable[str], int, bool], Tokenizer]] = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "unigram": _unigram,
}
# The special tokens and a word; for bpe the 256 bytes.
LEAST = {
    "wordpiece": len(BERT_SPECIALS) + len(SENTINELS) + 1,
    "bpe": len(OTHER_SPECIALS) + len(SENTINELS) + len(MODE_SPECIALS) + len(FILL_IN_SPECIALS) + 256,
    "unigram": len(OTHER_SPECIALS) + len(SENTINELS) + len(MODE_SPECIALS) + 1,
}
