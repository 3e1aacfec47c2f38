"""Text to ids: the `tokenizers` library, and faster programs that give the same ids.

Imported by every worker: nothing here may import torch or transformers.

Shapes: N tokens, D texts, Q sentences.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import tokenizers
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE, Model, WordPiece

from launcher.errors import TokenizerError
from launcher.prepare.tokenizer import UNKNOWN_FIX
from launcher.prepare.wordpiece import VERSION, CachedWordPiece, fits
from launcher.prepare.young_characters import with_young_characters

REFERENCE = "tokenizers"
OWN = "cached-wordpiece"
"""The one that needs no installing: `launcher.prepare.wordpiece`."""
_PARALLELISM = "TOKENIZERS_PARALLELISM"


BATCH_BYTES = 1 << 18
"""UTF-8 of texts tokenized at once: large against a call's cost (measured: 64 KiB to 512 KiB take the same time); the
arrays of 1 MiB come as new pages each time, a third of the time of the WordPiece cache."""
MAX_GROWTH = 512 << 20
"""By which a process may grow before its faster program begins anew, which takes 0.3 s (assumption: what a core of a
cluster's node has to spare, and large against the words of a language)."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """Who tokenizes, and what is told beside ids."""

    encoder: str = REFERENCE
    """Name of the program."""
    segmenter: str = ""
    """Tell which tokens continue a word, as this program cuts them; empty: do not tell."""
    sentences: bool = False
    """Tell which tokens make a sentence."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of several texts, without special tokens."""

    ids_N: NDArray[np.int32]
    """Of all texts end to end."""
    lengths_D: NDArray[np.int32]
    """Tokens of each text."""
    continues_N: NDArray[np.bool_] | None = None
    """Whether a token continues the word of the token before."""
    sentences_D: NDArray[np.int32] | None = None
    """Sentences of each text."""
    sentence_lengths_Q: NDArray[np.int32] | None = None
    """Tokens of each sentence, of all texts end to end."""


Encode = Callable[[list[str]], Encoded]
"""A faster program's call."""


class Encoder(Protocol):
    """Gives ids to texts."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of texts; a special token's name in a text is text like any other."""
        ...


def build_encoder(options: EncodeOptions, tokenizer_json: str) -> Encoder:
    """Make an encoder in this process.

    Args:
        options: Which one.
        tokenizer_json: The tokenizer.
    """
    # One thread a process: the processes are the parallelism. Read when the libraries start theirs.
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    if options.segmenter or options.sentences:
        from launcher.prepare.features import FeatureEncoder

        return FeatureEncoder(tokenizer_json, segmenter=options.segmenter, sentences=options.sentences)
    reference = ReferenceEncoder(tokenizer_json)
    if options.encoder == REFERENCE:
        return reference
    program = FAST[options.encoder]
    fast = FastEncoder(partial(program.load, tokenizer_json), reference)
    return GuardedEncoder(fast, reference) if program.has_own_tables else fast


def batch_bytes(options: EncodeOptions) -> int:
    """How much UTF-8 to give to an encoder at once; what it makes of a text does not depend on it."""
    return FAST[options.encoder].batch_bytes if options.encoder in FAST else BATCH_BYTES


def candidates(tokenizer_json: str) -> list[str]:
    """The faster programs installed here that take this kind of tokenizer, the one to be preferred first."""
    tokenizer = ids_tokenizer(tokenizer_json)
    return [name for name, fast in FAST.items() if fast.takes(tokenizer) and installed(name)]


def installed(name: str) -> str:
    """The version of a program, empty where it is not installed."""
    if name == OWN:
        return VERSION
    if name == REFERENCE:
        return tokenizers.__version__
    from importlib.metadata import PackageNotFoundError, version  # 15 ms, for what only others need

    try:
        return version(name)
    except PackageNotFoundError:
        return ""


class ReferenceEncoder:
    """`tokenizers`: what every other encoder is held against."""

    def __init__(self, tokenizer_json: str) -> None:
        self._json = tokenizer_json

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return ids_tokenizer(self._json)  # beside a faster program it may never be needed

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Encoder.encode`."""
        with typed():
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return flat(encodings)


class FastEncoder:
    """A faster program; where it breaks down on a text, the reference takes the text.

    Some remember what they have seen without end (measured: gigatoken 0.10 takes 10 MB for each MB of words that never
    come back), so it is made anew when the process has grown by `MAX_GROWTH`.

    Args:
        load: Makes its call.
        reference: What it was held against.
    """

    def __init__(self, load: Callable[[], Encode], reference: ReferenceEncoder) -> None:
        self._load, self._reference = load, reference
        self._begin()

    def _begin(self) -> None:
        self._encode = self._load()
        self._begun_bytes = resident_bytes()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Encoder.encode`."""
        if resident_bytes() - self._begun_bytes > MAX_GROWTH:
            del self._encode  # before there is another
            self._begin()
        try:
            return self._encode(list(texts))
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:  # a panic of Rust's is no Exception (seen: tokie 0.1.4 on characters of Unicode 16)
            if len(texts) == 1:
                return self._reference.encode(texts)
            half = len(texts) // 2
            parts = [self.encode(texts[:half]), self.encode(texts[half:])]
            return Encoded(
                np.concatenate([part.ids_N for part in parts]), np.concatenate([part.lengths_D for part in parts])
            )


class GuardedEncoder:
    """A faster program that has Unicode tables of its own: the reference takes texts with characters on which they may
    differ from its own.
    """

    def __init__(self, fast: Encoder, reference: ReferenceEncoder) -> None:
        self._fast, self._reference = fast, reference

    def encode(self, texts: Sequence[str]) -> Encoded:
        """See `Encoder.encode`."""
        young = with_young_characters(texts)
        if not young:
            return self._fast.encode(texts)
        common = sorted(set(range(len(texts))).difference(young))
        parts = [self._reference.encode([texts[place] for place in young])]
        if common:
            parts.append(self._fast.encode([texts[place] for place in common]))
        lengths_D = np.concatenate([part.lengths_D for part in parts])
        texts_ids = np.split(np.concatenate([part.ids_N for part in parts]), np.cumsum(lengths_D)[:-1])
        order_D = np.argsort([*young, *common])
        return Encoded(np.concatenate([texts_ids[place] for place in order_D]), lengths_D[order_D])


@contextmanager
def typed() -> Iterator[None]:
    """Say in our words that the reference has no ids for a text.

    Raises:
        TokenizerError: Its model met something unknown, and has no token for it.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # the Rust library raises nothing more special
            raise
        told = " ".join(str(error).split())
        raise TokenizerError(f"the tokenizer fails on a text: {told}", "--tokenizer", UNKNOWN_FIX) from None


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * mmap.PAGESIZE


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the Rust library's threads from starting: a process that has used them cannot fork without a warning."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before


def plain_tokenizer(tokenizer_json: str) -> Tokenizer:
    """A tokenizer to which a special token's name is text.

    Otherwise "</s>" or "[MASK]" written in a web page becomes the token that ends a document or hides a word.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer


@lru_cache(maxsize=1)
def ids_tokenizer(tokenizer_json: str) -> Tokenizer:
    """A plain tokenizer of which nothing but ids is asked: one in a process, as reading it takes 0.1 s.

    What stands behind the model adds special tokens and moves places: nothing of an id, and 3 % of the time.
    """
    tokenizer = plain_tokenizer(tokenizer_json)
    tokenizer.post_processor = None
    return tokenizer


def without_special(tokenizer_json: str) -> str:
    """A tokenizer without its special added tokens: what `encode_special_tokens` comes to, for programs without it."""
    fields = orjson.loads(tokenizer_json)
    fields["added_tokens"] = [token for token in fields["added_tokens"] if not token["special"]]
    fields["post_processor"] = None
    return orjson.dumps(fields).decode()


def flat(encodings: Sequence[Encoding]) -> Encoded:
    """The ids of texts end to end.

    Each text's list is gone before the next is made (measured: a third less time than to keep those of a batch).
    """
    arrays = [np.fromiter(encoding.ids, dtype=np.int32) for encoding in encodings]
    lengths_D = np.array([len(each) for each in arrays], dtype=np.int32)
    return Encoded(np.concatenate([np.empty(0, dtype=np.int32), *arrays]), lengths_D)


def _is(*models: type[Model]) -> Callable[[Tokenizer], bool]:
    """Whether a tokenizer's model is one of these."""

    def takes(tokenizer: Tokenizer) -> bool:
        return isinstance(tokenizer.model, models)

    return takes


def _load_cached_wordpiece(tokenizer_json: str) -> Encode:
    cached = CachedWordPiece(ids_tokenizer(tokenizer_json))

    def encode(texts: list[str]) -> Encoded:
        return Encoded(*cached.encode(texts))

    return encode


def _load_gigatoken(tokenizer_json: str) -> Encode:
    import gigatoken

    backend: Any = gigatoken.Tokenizer.from_json(without_special(tokenizer_json))._backend

    def encode(texts: list[str]) -> Encoded:
        layout = backend.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return Encoded(ids.astype(np.int32), np.diff(offsets).astype(np.int32))

    return encode


def _load_fastokens(tokenizer_json: str) -> Encode:
    from fastokens import _native

    backend: Any = _native.Tokenizer.from_json_str(without_special(tokenizer_json))

    def encode(texts: list[str]) -> Encoded:
        return flat(backend.encode_batch(texts, add_special_tokens=False))

    return encode


def _load_tokie(tokenizer_json: str) -> Encode:
    import tokie

    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:  # it reads files only
        file.write(without_special(tokenizer_json))
        file.flush()
        backend: Any = tokie.Tokenizer.from_json(str(Path(file.name)))

    def encode(texts: list[str]) -> Encoded:
        return flat(backend.encode_batch(texts, add_special_tokens=False))

    return encode


@dataclass(frozen=True, slots=True)
class _Fast:
    """A faster program."""

    takes: Callable[[Tokenizer], bool]
    """Whether it is for this tokenizer."""
    load: Callable[[str], Encode]
    """Makes its call from a tokenizer's JSON."""
    has_own_tables: bool = True
    """Whether it knows for itself what is a letter."""
    batch_bytes: int = 1 << 20
    """UTF-8 to give to it at once (measured: a call of gigatoken's costs 1 ms; of `BATCH_BYTES` it takes 1.2 of the
    time)."""
    unsound: str = ""
    """Why `auto` does not take it, whatever the gate says; it can be asked for by name, and passes the gate or not."""


FAST = {
    OWN: _Fast(fits, _load_cached_wordpiece, has_own_tables=False, batch_bytes=BATCH_BYTES),
    "gigatoken": _Fast(_is(BPE), _load_gigatoken),
    "fastokens": _Fast(_is(BPE), _load_fastokens),
    "tokie": _Fast(
        _is(WordPiece, BPE),
        _load_tokie,
        # A sample cannot clear it: whether it fails on a text depends on where its threads happen to cut the bytes.
        unsound="cuts texts between the bytes of a character (seen: it panics on 2 of 3,699 wiki articles)",
    ),
}
"""By preference (measured, MB/s of one core, warm, against 2 of `tokenizers`: gigatoken 60 and fastokens 27 on Chinese
BPE, 116 and 82 on code; tokie 23 on Chinese WordPiece)."""
