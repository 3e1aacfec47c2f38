"""Training a tokenizer that serves every objective: with a mask token, sentinels, and ends of documents."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordPiece

from launcher.errors import CorpusError, LauncherError, TokenizerError
from launcher.prepare.encoders import one_thread
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
OWN_FILES = {"tokenizer.json", "tokenizer_config.json"}
OTHER_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
# Tokens of bpe vocabularies for filling in the middle, and of bpe and unigram for UL2, behind the sentinels. A
# wordpiece vocabulary, which is made for masked models, has neither.
FILL_IN_SPECIALS = tuple(names[0] for names in FILL_IN.values())
MODE_SPECIALS = tuple(names[0] for names in MODES)


def train_tokenizer(texts: Iterable[str], kind: str, vocab_size: int, out: Path) -> TokenizerHandle:
    """Train a tokenizer and save it as a `transformers` folder.

    The same texts in the same order give the same bytes, but for `unigram`, whose trainer in the Rust library sums in
    the random order of a hash map. Where a `wordpiece` vocabulary has no room for every character, the rarest are left
    out and become the unknown token.

    Args:
        texts: Documents.
        kind: `wordpiece`, `bpe` or `unigram`.
        vocab_size: Ids, special tokens included.
        out: Folder to write; it appears under its name when it is complete.

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
    # Rust threads merge counts in any order, and ties in the counts then fall either way.
    with one_thread():
        tokenizer = TRAINERS[kind](_some(texts), vocab_size)
    handle = describe_tokenizer(tokenizer, out.resolve().name)
    out.parent.mkdir(parents=True, exist_ok=True)
    saving = out.with_name(f".{out.name}.saving")
    shutil.rmtree(saving, ignore_errors=True)
    save_tokenizer(handle, saving)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(saving, out)
    return handle


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts; raises CorpusError behind the last where none was."""
    text = None
    for text in texts:
        yield text
    if text is None:
        raise CorpusError("there is no text to train on", "corpus", "check the files and the text field")


def _wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trained twice: the library numbers the `##x` of single characters in the random order of a hash map, and breaks
    ties by number. The first pass only finds them; the second is given them, sorted, as if they were special.
    """
    texts = list(texts)
    finder = _untrained_wordpiece({})
    finder.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=1, show_progress=False))
    room = vocab_size - len(BERT_SPECIALS) - len(SENTINELS)
    alphabet, parts = _alphabet(texts, finder.get_vocab(), room)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*BERT_SPECIALS, *SENTINELS, *parts],
        # Without a limit the library takes every character, whatever `vocab_size` says.
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=False,
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


def _bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_special((*OTHER_SPECIALS, *SENTINELS, *MODE_SPECIALS, *FILL_IN_SPECIALS)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=_special((*OTHER_SPECIALS, *SENTINELS, *MODE_SPECIALS)),
        unk_token="<unk>",
        show_progress=False,
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


TRAINERS: dict[str, Callable[[Iterable[str], int], Tokenizer]] = {
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
