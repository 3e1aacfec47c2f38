"""The `pretrain` command: parse, call, print.

Programs that need torch are imported by the command that runs them, so that everything else starts at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.errors import EXIT_DONE, EXIT_INTERRUPTED, LauncherError, RequeueError, ShardError

if TYPE_CHECKING:
    from launcher import ask

EPILOG = """\
train:  deepspeed launcher/train.py --ds_config zero3.json [--recipe NAME] [key=value ...]
exit codes: 0 done, 1 a fault of ours, 2 something for you to mend, 75 stopped, run the same command again
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes all overrides of `pretrain recipe` in one piece; those behind an option are left over.
    if rest and hasattr(options, "overrides") and not any(word.startswith("-") for word in rest):
        options.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `pretrain … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = str(error.filename or "")
        told = RequeueError(
            f"the file system refused: {error.strerror}", where, "mend it, and run the same command again"
        )
        print(told, file=sys.stderr)
        return told.exit_code
    return EXIT_DONE


def build_parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    parser = argparse.ArgumentParser(
        prog="pretrain",
        description="Pretrain transformers models with DeepSpeed, from text to exported model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        command.set_defaults(command=run)
        return command

    command = add("quickstart", quickstart, "make the quick start's corpus, tokenizer and shards")
    command.add_argument("--out", type=Path, metavar="DIR", help="where (default: data/law-zh)")

    command = add("recipe", recipe, "print a resolved recipe with each field's origin")
    command.add_argument("recipe", metavar="NAME_OR_PATH", help="a YAML file, or the name of a shipped recipe")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.num_steps=50")
    command.add_argument("--explain", action="store_true", help="say what each field means")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("tokenizer", tokenizer, "train a tokenizer, saved as a transformers folder")
    _add_corpus(command)
    command.add_argument("--kind", choices=("wordpiece", "bpe", "unigram"), required=True, help="algorithm")
    command.add_argument(
        "--vocab-size", type=_positive, required=True, metavar="N", help="ids, special tokens included"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")

    command = add("prepare", prepare, "turn text into shards (*.bin, *.idx, manifest)")
    _add_corpus(command)
    command.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="tokenizer folder")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    command.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one a core)")
    command.add_argument(
        "--validation-share", type=_share, default=0.02, metavar="SHARE", help="held-out documents (%(default)s)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace shards made from something else")

    command = add("verify", verify, "check every byte of a folder of shards")
    command.add_argument("folder", type=Path, metavar="DIR")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("hostfile", hostfile, "check a hostfile before DeepSpeed takes a mistake in it for one machine")
    command.add_argument("file", type=Path, metavar="FILE")

    command = add("export", export, "write a run's checkpoint as a transformers folder")
    command.add_argument("run", type=Path, metavar="RUN", help="a run's folder, e.g. runs/law-bert-zh")
    command.add_argument("--step", type=int, metavar="N", help="checkpoint to take (default: the newest)")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")

    for name, run, help_ in (
        ("fill", fill, "let a masked language model fill the [MASK]s of texts"),
        ("generate", generate, "let a model go on from texts"),
    ):
        command = add(name, run, help_)
        command.add_argument("model", type=Path, metavar="RUN_OR_DIR", help="a run's folder or an exported one")
        command.add_argument("prompts", nargs="+", metavar="TEXT")
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return share


def _add_corpus(command: argparse.ArgumentParser) -> None:
    command.add_argument("corpus", nargs="+", metavar="CORPUS", help="JSONL or JSON array: files, folders, globs")
    command.add_argument("--text-field", default="completion", metavar="FIELD", help="field of the text (%(default)s)")


def quickstart(options: argparse.Namespace) -> None:
    """`pretrain quickstart`."""
    from launcher.prepare.quickstart import QUICKSTART_FOLDER, prepare_quickstart

    prepare_quickstart(options.out or QUICKSTART_FOLDER)


def recipe(options: argparse.Namespace) -> None:
    """`pretrain recipe`."""
    from launcher.config.loading import describe_fields, flat, load_recipe

    loaded = load_recipe(options.recipe, options.overrides)
    meanings = describe_fields()
    fields = {
        name: {"value": value, "origin": loaded.origin(name), "meaning": meanings.get(name, "")}
        for name, value in flat(loaded.recipe).items()
    }
    if options.json:
        print(json.dumps(fields, ensure_ascii=False, indent=2))
        return
    values = {name: json.dumps(entry["value"], ensure_ascii=False) for name, entry in fields.items()}
    width = max(len(name) + len(value) for name, value in values.items()) + 4
    for name, value in values.items():
        if options.explain:
            print(f"# {fields[name]['meaning']}")
        print(f"{f'{name}: {value}':<{min(width, 60)}}  # {fields[name]['origin']}")


def tokenizer(options: argparse.Namespace) -> None:
    """`pretrain tokenizer`."""
    from collections import Counter

    from launcher.prepare.documents import find_files, read_documents
    from launcher.prepare.split import is_held_out
    from launcher.prepare.tokenizer import measure_tokenizer
    from launcher.prepare.tokenizer_training import train_tokenizer

    files = find_files(options.corpus)

    def texts(held_out: bool) -> Iterator[str]:
        documents = read_documents(files, options.text_field, Counter())
        return (document.text for document in documents if is_held_out(document.text) == held_out)

    handle = train_tokenizer(texts(held_out=False), options.kind, options.vocab_size, options.out)
    report = measure_tokenizer(handle, texts(held_out=True))
    print(f"{options.out}: {handle.info.vocab_size} tokens")
    print(f"on held-out text: {report.tokens_per_byte:.3f} tokens a byte, {report.unknown_share:.2%} unknown")


def prepare(options: argparse.Namespace) -> None:
    """`pretrain prepare`."""
    from launcher.prepare.build import BuildRequest, build_shards

    build_shards(
        BuildRequest(
            corpus=tuple(options.corpus),
            tokenizer=options.tokenizer,
            out=options.out,
            text_field=options.text_field,
            workers=options.workers,
            validation_share=options.validation_share,
            overwrite=options.overwrite,
        )
    )


def verify(options: argparse.Namespace) -> None:
    """`pretrain verify`."""
    from launcher.shards.verify import verify as find_problems

    problems = find_problems(options.folder)
    if options.json:
        print(json.dumps({"folder": str(options.folder), "problems": problems}, ensure_ascii=False))
    elif not problems:
        print(f"{options.folder}: every byte is as it was written")
    if problems:
        raise ShardError("; ".join(problems), str(options.folder), "restore the files, or prepare the shards again")


def hostfile(options: argparse.Namespace) -> None:
    """`pretrain hostfile`."""
    from launcher.cluster.hostfile import read_hostfile

    hosts = read_hostfile(options.file)
    for host in hosts:
        print(f"{host.name}: {host.slots} ranks")
    print(f"in all: {sum(host.slots for host in hosts)} ranks on {len(hosts)} hosts")


def export(options: argparse.Namespace) -> None:
    """`pretrain export`."""
    from launcher.export import export_run

    print(export_run(options.run, options.out, options.step))


def fill(options: argparse.Namespace) -> None:
    """`pretrain fill`."""
    from launcher import ask

    _show_answers(options, ask.fill(ask.exported_folder(options.model), options.prompts))


def generate(options: argparse.Namespace) -> None:
    """`pretrain generate`."""
    from launcher import ask

    _show_answers(options, ask.generate(ask.exported_folder(options.model), options.prompts))


def _show_answers(options: argparse.Namespace, answers: Sequence[ask.Answer]) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from launcher.report import show_answers

    if options.json:
        print(json.dumps([asdict(answer) for answer in answers], ensure_ascii=False, indent=2))
    else:
        show_answers(Console(), list(answers))


if __name__ == "__main__":
    sys.exit(main())
