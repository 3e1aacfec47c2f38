"""Masking a batch of 32 rows of 512 tokens, against transformers' DataCollatorForLanguageModeling, on the same ids.

    python -m benchmarks.masking [--tokenizer DIR] [--corpus FILE.jsonl] [--json]

The peer gets what its documentation asks for, a mapping for each row with `special_tokens_mask` among its entries, and
is timed in torch (what it does unless told otherwise: the bars are against this) and in numpy (its faster form). Given
bare lists of ids it saves the padding and makes no attention mask. Whole words are the same for both, jieba's in
Chinese: the collator takes tokens that touch for one word, so its offsets are moved apart where a word begins. It can
only hide words; ours become the mask token, a random one, or stay, token by token.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from benchmarks.rounds import ratio
from benchmarks.support import Ratio, parser, read_texts, show
from launcher.objectives.mlm import MaskedLM
from launcher.prepare.segmenters import preferred_segmenter
from launcher.prepare.tokenizer import TokenizerHandle, load_tokenizer
from launcher.prepare.tokenizer_training import train_tokenizer
from launcher.prepare.words import WordMarker

NUM_ROWS, SEQ_LEN, NUM_BATCHES = 32, 512, 8
BAR, WHOLE_WORDS_BAR = 100, 150
OURS_CALLS = 64  # about as long as one call of the peer
FORMS = {"np": "numpy", "pt": "torch"}

Examples = Sequence[Any]


@dataclass(frozen=True)
class Batch:
    """Full rows, as the data plane hands them over."""

    tokens_BL: NDArray[np.int32]
    num_tokens_B: NDArray[np.int64]
    positions_B: NDArray[np.int64]
    continues_BL: NDArray[np.bool_]
    hidden_BL: None = None
    segments_BL: None = None
    pair_cuts_B: None = None
    pair_labels_B: None = None


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--tokenizer", type=Path, metavar="DIR", help="BERT-like; trained on the texts if left out")
    options = arguments.parse_args()
    texts = read_texts(options.corpus, limit=1500)
    handle = _tokenizer(options.tokenizer, texts)
    batches = _batches(handle, texts)
    for_words = [_examples(batch, handle) for batch in batches]
    for_tokens = [[_without_offsets(example) for example in examples] for examples in for_words]
    bare = [[example["input_ids"] for example in examples] for examples in for_words]
    seed, info = 1, handle.info
    tokens = MaskedLM(SEQ_LEN, seed, info.special, info.vocab_size)
    words = MaskedLM(SEQ_LEN, seed, info.special, info.vocab_size, unit="word")
    results = [
        _compare(name, objective, batches, given, examples, handle, form, options.rounds, bar if form == "pt" else None)
        for name, objective, given, examples, bar in (
            ("tokens", tokens, "mappings", for_tokens, BAR),
            ("tokens", tokens, "bare lists", bare, None),
            ("whole words", words, "mappings", for_words, WHOLE_WORDS_BAR),
        )
        for form in FORMS
    ]
    corpus = options.corpus.name if options.corpus else "made up"
    settings = {"rows": NUM_ROWS, "seq_len": SEQ_LEN, "tokenizer": info.name, "corpus": corpus}
    show("masking", results, as_json=options.json, packages=("numpy", "torch", "transformers"), settings=settings)


def _compare(
    name: str,
    objective: MaskedLM,
    batches: Sequence[Batch],
    given: str,
    examples: Sequence[Examples],
    handle: TokenizerHandle,
    form: str,
    rounds: int,
    bar: float | None,
) -> Ratio:
    """Against the collator in one form, fed in one way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it only hides whole words
        collator = DataCollatorForLanguageModeling(
            _for_transformers(handle), whole_word_mask=objective.unit == "word", return_tensors=form
        )
    rows, their_rows = itertools.cycle(batches), itertools.cycle(examples)
    return ratio(
        name,
        lambda: objective.batch(next(rows)),
        f"transformers' collator in {FORMS[form]}, given {given}",
        lambda: collator(next(their_rows)),
        rounds,
        ours_calls=OURS_CALLS,
        bar=bar,
    )


def _tokenizer(folder: Path | None, texts: Sequence[str]) -> TokenizerHandle:
    if folder is not None:
        return load_tokenizer(folder)
    with tempfile.TemporaryDirectory() as made:
        return train_tokenizer(texts, "wordpiece", 8000, Path(made) / "wordpiece")


def _for_transformers(handle: TokenizerHandle) -> PreTrainedTokenizerFast:
    special = handle.info.special
    ids = {"cls": special.cls, "sep": special.sep, "mask": special.mask, "pad": special.pad, "unk": special.unk}
    named = {
        f"{role}_token": handle.tokenizer.id_to_token(number) for role, number in ids.items() if number is not None
    }
    return PreTrainedTokenizerFast(tokenizer_object=handle.tokenizer, **named)


def _batches(handle: TokenizerHandle, texts: Sequence[str]) -> list[Batch]:
    """The texts end to end in full rows, from the beginning again if they are too few."""
    marker = WordMarker(preferred_segmenter())
    ids: list[NDArray[np.int32]] = []
    words: list[NDArray[np.bool_]] = []
    width = SEQ_LEN - 2
    wanted = NUM_BATCHES * NUM_ROWS * width
    for text in itertools.cycle(texts):
        encoding = handle.tokenizer.encode(text, add_special_tokens=False)
        ids.append(np.array([*encoding.ids, handle.info.special.document_end], dtype=np.int32))
        marks = marker.marks(text, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
        words.append(np.append(marks, False))
        wanted -= len(ids[-1])
        if wanted <= 0:
            break
    num_tokens = NUM_BATCHES * NUM_ROWS * width
    tokens = np.concatenate(ids)[:num_tokens].reshape(NUM_BATCHES, NUM_ROWS, width)
    continues = np.concatenate(words)[:num_tokens].reshape(NUM_BATCHES, NUM_ROWS, width)
    continues[:, :, 0] = False
    full_B, rows_B = np.full(NUM_ROWS, width, dtype=np.int64), np.arange(NUM_ROWS, dtype=np.int64)
    return [
        Batch(tokens[number], full_B, rows_B + number * NUM_ROWS, continues[number]) for number in range(NUM_BATCHES)
    ]


def _examples(batch: Batch, handle: TokenizerHandle) -> list[dict[str, Any]]:
    """The same rows for the collator, as a tokenizer gives them."""
    special = handle.info.special
    specials = np.array(special.all_ids)
    examples = []
    for tokens_L, continues_L in zip(batch.tokens_BL, batch.continues_BL, strict=True):
        ids = np.concatenate([[special.cls], tokens_L, [special.sep]])
        begins = ~np.concatenate([[False], continues_L, [False]])
        ends = 2 * np.arange(SEQ_LEN) + 1  # a token of one character; a space before each word moves it on
        starts = np.where(begins, ends - 1, np.concatenate([[0], ends[:-1]]))
        examples.append(
            {
                "input_ids": ids.tolist(),
                "attention_mask": [1] * SEQ_LEN,
                "special_tokens_mask": np.isin(ids, specials).astype(int).tolist(),
                "offset_mapping": np.stack([starts, ends], axis=-1).tolist(),
            }
        )
    return examples


def _without_offsets(example: dict[str, Any]) -> dict[str, Any]:
    """Only whole words need them, and they take the collator time."""
    return {name: values for name, values in example.items() if name != "offset_mapping"}


if __name__ == "__main__":
    main()
