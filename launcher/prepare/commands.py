"""The commands that make shards: `pretrain quickstart`, `tokenizer`, `prepare`, `adopt`, `verify`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.config.arguments import count, positive, share
from launcher.errors import EXIT_DONE, EXIT_USER, RequeueError, ShardError

Add = Callable[[str, Callable[[argparse.Namespace], int | None], str], argparse.ArgumentParser]
"""Makes a command: its name, what runs it, what it is for."""


def add_commands(add: Add) -> None:
    """The commands and their options."""
    command = add("quickstart", quickstart, "make the quick start's corpus, tokenizer and shards")
    command.add_argument("--out", type=Path, metavar="DIR", help="where (default: data/law-zh)")

    command = add("tokenizer", tokenizer, "train a tokenizer, saved as a transformers folder")
    _add_corpus(command)
    command.add_argument("--kind", choices=("wordpiece", "bpe", "unigram"), required=True, help="algorithm")
    command.add_argument("--vocab-size", type=positive, required=True, metavar="N", help="ids, special tokens included")
    command.add_argument(
        "--sample-megabytes",
        type=positive,
        default=100,
        metavar="N",
        help="text to train on, from all over a larger corpus (%(default)s)",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")

    command = add("prepare", prepare, "turn text into shards (*.bin, *.idx, manifest)")
    _add_corpus(command)
    command.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="tokenizer folder")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    command.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    command.add_argument(
        "--validation-share", type=share, default=0.02, metavar="SHARE", help="held-out documents (%(default)s)"
    )
    command.add_argument("--min-chars", type=positive, metavar="N", help="drop shorter texts")
    command.add_argument("--max-chars", type=positive, metavar="N", help="drop longer texts")
    command.add_argument("--keep", metavar="MODULE:FUNCTION", help="drop records for which your function is false")
    command.add_argument("--dedupe", action="store_true", help="drop texts that occurred before")
    command.add_argument("--words", action="store_true", help="mark words (jieba's in Chinese) for whole-word masking")
    command.add_argument("--sentences", action="store_true", help="one Megatron sequence a sentence")
    command.add_argument(
        "--encoder",
        default="auto",
        metavar="NAME",
        help="auto, tokenizers, cached-wordpiece, gigatoken, fastokens or tokie (%(default)s)",
    )
    command.add_argument("--task", type=count, default=0, metavar="I", help="this machine, of --tasks, from 0")
    command.add_argument("--tasks", type=positive, default=1, metavar="N", help="machines that build together")
    command.add_argument("--overwrite", action="store_true", help="replace shards made from something else")

    command = add("adopt", adopt, "take token files of Megatron, datatrove, nanoGPT or OLMo as they are")
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".bin with .idx, .ds, or flat tokens")
    command.add_argument("--validation", nargs="+", type=Path, default=[], metavar="FILE", help="files held out")
    command.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="tokenizer they were made with")
    command.add_argument("--dtype", choices=("uint16", "uint32", "int32"), help="of flat files")
    command.add_argument("--document-end", type=count, metavar="ID", help="id that ends a document of a flat file")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")

    command = add("verify", verify, "check every byte of a folder of shards")
    command.add_argument("folder", type=Path, metavar="DIR")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_corpus(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "corpus",
        nargs="+",
        metavar="CORPUS",
        help="JSONL, a JSON array, text, parquet, arrow, also .gz .zst .xz: files, folders, globs; or hub:OWNER/NAME",
    )
    command.add_argument("--text-field", default="completion", metavar="FIELD", help="field of the text (%(default)s)")
    command.add_argument(
        "--txt",
        choices=("file", "blank", "line"),
        default="file",
        help="a document of a .txt is the file, what stands between blank lines, or a line (%(default)s)",
    )


def quickstart(options: argparse.Namespace) -> None:
    """`pretrain quickstart`."""
    from launcher.prepare.quickstart import QUICKSTART_FOLDER, prepare_quickstart

    prepare_quickstart(options.out or QUICKSTART_FOLDER)


def tokenizer(options: argparse.Namespace) -> None:
    """`pretrain tokenizer`."""
    from rich.console import Console

    from launcher.prepare.quality import CURE_OF_NEW, unknown_characters, warn_unknown
    from launcher.prepare.readers import ReadOptions
    from launcher.prepare.split import is_held_out
    from launcher.prepare.texts import sample_texts
    from launcher.prepare.tokenizer import measure_tokenizer
    from launcher.prepare.tokenizer_training import train_tokenizer

    read = ReadOptions(text_field=options.text_field, txt=options.txt)

    def texts(held_out: bool) -> Iterator[str]:
        sample = sample_texts(options.corpus, options.sample_megabytes * 10**6, read)
        return (text for text in sample if is_held_out(text) == held_out)

    console = Console(stderr=True, markup=False)
    handle = train_tokenizer(texts(held_out=False), options.kind, options.vocab_size, options.out, console)
    report = measure_tokenizer(handle, texts(held_out=True))
    print(f"{options.out}: {handle.info.vocab_size} tokens")
    if report.tokens_per_byte:
        print(f"on held-out text: {report.tokens_per_byte:.3f} tokens a byte, {report.unknown_share:.2%} unknown")
    else:
        print("of so few texts none is held out to measure it on")
    lost = unknown_characters(handle, texts(held_out=True)) if report.unknown_share else []
    warning = warn_unknown(handle, report.unknown_share, lost, CURE_OF_NEW)
    if warning:
        print(warning, file=sys.stderr)


def prepare(options: argparse.Namespace) -> None:
    """`pretrain prepare`."""
    from launcher.prepare.build import build_shards
    from launcher.prepare.filters import FilterOptions
    from launcher.prepare.readers import ReadOptions
    from launcher.prepare.request import BuildRequest

    filters = FilterOptions(min_chars=options.min_chars, max_chars=options.max_chars, keep=options.keep)
    build_shards(
        BuildRequest(
            corpus=tuple(options.corpus),
            tokenizer=options.tokenizer,
            out=options.out,
            read=ReadOptions(text_field=options.text_field, txt=options.txt),
            filters=filters,
            dedupe=options.dedupe,
            workers=options.workers,
            validation_share=options.validation_share,
            encoder=options.encoder,
            words=options.words,
            sentences=options.sentences,
            task=options.task,
            tasks=options.tasks,
            overwrite=options.overwrite,
        )
    )


def adopt(options: argparse.Namespace) -> None:
    """`pretrain adopt`."""
    from launcher.prepare.adopt import adopt as adopt_files
    from launcher.prepare.build import describe

    manifest = adopt_files(
        options.files, options.validation, options.tokenizer, options.out, options.dtype, options.document_end
    )
    print(f"{options.out}: {describe(manifest)}")


def verify(options: argparse.Namespace) -> int:
    """`pretrain verify`."""
    from launcher.shards.verify import problems_json
    from launcher.shards.verify import verify as find_problems

    try:
        problems = find_problems(options.folder)
    except ShardError as error:  # of the manifest or the checksums: nothing can be told of the rest
        problems = [error.on_one_line()]
    except RequeueError as error:
        if options.json:
            print(problems_json(options.folder, [error.on_one_line()]))
        raise
    if options.json:
        print(problems_json(options.folder, problems))
    elif not problems:
        print(f"{options.folder}: every byte is as it was written")
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_USER if problems else EXIT_DONE
