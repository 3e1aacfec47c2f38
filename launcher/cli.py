"""The `pretrain` command: parse, call, print.

Programs that need torch are imported by the command that runs them, so that everything else starts at once.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.cluster import hostfile_command
from launcher.cluster.environment import stay_inside
from launcher.config.arguments import code_file, count, gigabytes, positive, temperature, top_p
from launcher.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USER, LauncherError, RequeueError, UsageError
from launcher.prepare import commands as commands_of_prepare
from launcher.probe import options as options_of_check
from launcher.scale import options as options_of_scale

if TYPE_CHECKING:
    from launcher import ask

Command = Callable[[argparse.Namespace], int | None]
"""Runs a command; its exit code, where it is not 0."""
Add = Callable[[str, Command, str], argparse.ArgumentParser]
"""Adds a command: its name, what runs it, and a line of help."""
EPILOG = """\
train:  deepspeed launcher/train.py --ds_config zero3.json [--recipe NAME] [key=value ...]
exit codes: 0 done, 1 a fault of ours, 2 something for you to mend, 75 stopped, run the same command again
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser(words[0] if words else "")
    options, rest = parser.parse_known_args(words)
    # argparse takes all overrides of `pretrain recipe` in one piece; those behind an option are left over.
    if rest and hasattr(options, "overrides") and not any(word.startswith("-") for word in rest):
        options.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command: Command = options.command
    try:
        return command(options) or EXIT_DONE
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads_on():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_DONE
        where = str(error.filename or "")
        told = RequeueError(
            f"the file system refused: {error.strerror}", where, "mend it, and run the same command again"
        )
        print(told, file=sys.stderr)
        return told.exit_code


def _nobody_reads_on() -> bool:
    """Whether it is our output whose pipe is broken (`pretrain … | head`), and not one to a process of ours."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def build_parser(command_name: str = "") -> argparse.ArgumentParser:
    """Every command and its options; without those that bring much with them where another one is asked for."""
    parser = argparse.ArgumentParser(
        prog="pretrain",
        description="Pretrain transformers models with DeepSpeed, from text to exported model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Command, help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        command.set_defaults(command=run)
        return command

    commands_of_prepare.add_commands(add)

    command = add("recipe", recipe, "print a resolved recipe with each field's origin")
    command.add_argument("recipe", metavar="NAME_OR_PATH", help="a YAML file, or the name of a shipped recipe")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.num_steps=50")
    command.add_argument("--explain", action="store_true", help="say what each field means")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("show", show, "look at documents and samples of a folder of shards")
    command.add_argument("folder", type=Path, metavar="DIR")
    command.add_argument("--split", choices=("train", "validation"), default="train", help="which (%(default)s)")
    command.add_argument("--documents", type=count, default=2, metavar="N", help="documents to show (%(default)s)")
    command.add_argument("--samples", type=count, default=2, metavar="N", help="samples to show (%(default)s)")
    command.add_argument("--from", type=count, default=0, dest="first", metavar="N", help="the first of them (0)")
    command.add_argument("--recipe", default=None, metavar="NAME_OR_PATH", help="whose objective makes the samples")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("trace", trace, "which text was in a step; which steps saw a text")
    command.add_argument("run", type=Path, metavar="RUN", help="a run's folder, e.g. runs/law-bert-zh")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", type=positive, metavar="N", help="name corpus, file, line and text of its sequences")
    which.add_argument("--digest", metavar="HEX", help="the same of a batch_digest in metrics.jsonl")
    which.add_argument("--document", metavar="ID", help="FILE:LINE, or the xxh3-128 of the text")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("report", report, "how much of a run's time went into steps that count")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, e.g. runs/law-bert-zh")
    command.add_argument("--json", action="store_true", help="one JSON object a run")

    command = add("drill", drill, "break a tiny run on purpose and show that nothing is lost")
    command.add_argument("names", nargs="*", metavar="NAME", help="a drill of --list, or all")
    command.add_argument("--list", action="store_true", help="name them")
    command.add_argument("--ds_config", default="zero2", metavar="NAME_OR_PATH", help="DeepSpeed JSON (%(default)s)")
    command.add_argument("--ranks", type=positive, default=2, metavar="N", help="ranks, on this machine (%(default)s)")
    command.add_argument("--times", type=positive, default=1, metavar="N", help="how often kill-rank kills (1)")
    command.add_argument("--out", type=Path, metavar="DIR", help="where the runs are left (a temporary folder)")
    command.add_argument("--json", action="store_true", help="one JSON object a drill")

    command = add("doctor", doctor, "what this machine has of what a run needs, before it is queued")
    command.add_argument("recipe", nargs="?", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. batch.global_batch=512")
    command.add_argument("--ds_config", metavar="NAME_OR_PATH", help="DeepSpeed JSON of the run")
    command.add_argument("--ranks", type=positive, metavar="N", help="ranks of the run, on all nodes together")
    command.add_argument("--nodes", type=positive, metavar="N", help="nodes they are spread over (1)")
    command.add_argument("--hostfile", type=Path, metavar="FILE", help="tells ranks and nodes")
    slurm = command.add_argument_group(
        "Slurm, on its login node (without them: the #SBATCH lines of slurm/pretrain.sh)"
    )
    slurm.add_argument("--partition", metavar="NAME", help="where the run is submitted to")
    slurm.add_argument("--account", metavar="NAME", help="who pays for it")
    slurm.add_argument("--time", metavar="LIMIT", help="as sbatch takes it: 4:00:00")
    command.add_argument("--json", action="store_true", help="one JSON object")

    command = add("check", check, "inside of an allocation, on every rank: name what would stop or slow the run")
    options_of_check.add_options(command)

    command = add("scale", scale, "run a recipe on growing numbers of ranks or nodes, and tell how it scales")
    options_of_scale.add_options(command)

    command = add("hostfile", hostfile_command.run, "check a hostfile, or write one from the allocation this is in")
    hostfile_command.add_options(command)

    command = add("export", export, "write a run's checkpoint as a transformers folder")
    command.add_argument("run", type=Path, metavar="RUN", help="a run's folder, e.g. runs/law-bert-zh")
    command.add_argument("--step", type=int, metavar="N", help="checkpoint to take (default: the newest)")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    command.add_argument(
        "--shard-gb", type=gigabytes, default=5.0, metavar="GB", help="most of the weights in one file (%(default)s)"
    )
    add_trust(command)

    command = add("fill", fill, "let a masked language model fill the [MASK]s of texts")
    add_question(command)
    command.add_argument("--top", type=positive, default=3, metavar="N", help="words to name for a blank (%(default)s)")

    command = add("generate", generate, "let a model go on from texts, or write what is missing in them")
    add_question(command)
    command.add_argument(
        "--max-tokens", type=positive, default=40, metavar="N", help="longest answer, in tokens (%(default)s)"
    )
    command.add_argument(
        "--temperature",
        type=temperature,
        metavar="T",
        help="draw each token, after dividing the scores by this (0: take the most likely one; with --top-p 1)",
    )
    command.add_argument(
        "--top-p", type=top_p, metavar="P", help="draw from the fewest tokens that together are so likely (all)"
    )
    command.add_argument(
        "--seed", type=count, default=0, metavar="N", help="of the draws: the same again for each text (%(default)s)"
    )
    if command_name not in commands.choices:
        add_heavy_commands(add)
    return parser


def add_heavy_commands(add: Add) -> None:
    """Those whose options come with recipes and DeepSpeed's settings: a third of a second."""
    from launcher import launch
    from launcher.checkpoints import command as checkpoints
    from launcher.config import deepspeed_command

    command = add("ds-config", deepspeed_command.run, "build a DeepSpeed JSON from few choices, or check one")
    deepspeed_command.add_options(command)

    command = add("checkpoints", checkpoints.run, "look at a run's checkpoints, check their bytes, delete old ones")
    checkpoints.add_options(command)

    command = add("launch", launch.run, "start a run through DeepSpeed, Slurm, MPI, torchrun or ssh, or print how")
    launch.add_options(command)


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


def show(options: argparse.Namespace) -> None:
    """`pretrain show`."""
    from launcher import show as program

    program.show(
        options.folder, options.split, options.first, options.documents, options.samples, options.recipe, options.json
    )


def trace(options: argparse.Namespace) -> None:
    """`pretrain trace`."""
    from launcher import tracing

    if options.step is not None:
        tracing.print_step(options.run, options.step, options.json)
    elif options.digest is not None:
        tracing.print_digest(options.run, options.digest, options.json)
    else:
        tracing.print_document(options.run, options.document, options.json)


def report(options: argparse.Namespace) -> None:
    """`pretrain report`."""
    from launcher.goodput import print_goodput

    print_goodput(options.runs, options.json)


def drill(options: argparse.Namespace) -> int:
    """`pretrain drill`."""
    from launcher.drill import program

    if options.list or not options.names:
        program.print_list()
        return EXIT_DONE
    return program.run_drills(
        options.names,
        config=options.ds_config,
        num_ranks=options.ranks,
        times=options.times,
        folder=options.out,
        as_json=options.json,
    )


def doctor(options: argparse.Namespace) -> int:
    """`pretrain doctor`."""
    from launcher.config.loading import DEFAULT_RECIPE
    from launcher.doctor.findings import as_json, as_lines, is_sound
    from launcher.doctor.job import Job
    from launcher.doctor.program import examine

    of_slurm = (options.partition, options.account, options.time)
    about_a_job = any((options.recipe, options.ds_config, options.ranks, options.nodes, options.hostfile, *of_slurm))
    job = Job(
        recipe=options.recipe or DEFAULT_RECIPE,
        overrides=options.overrides,
        ds_config=options.ds_config,
        ranks=options.ranks,
        nodes=options.nodes,
        hostfile=options.hostfile,
        partition=options.partition,
        account=options.account,
        time=options.time,
    )
    findings = examine(job if about_a_job else None, os.environ)
    print(as_json(findings) if options.json else "\n".join(as_lines(findings)))
    return EXIT_DONE if is_sound(findings) else EXIT_USER


def check(options: argparse.Namespace) -> int:
    """`pretrain check`."""
    from launcher.probe import program

    program.leave(program.run(options))


def scale(options: argparse.Namespace) -> int:
    """`pretrain scale`."""
    from launcher.scale.program import run

    return run(options)


def export(options: argparse.Namespace) -> None:
    """`pretrain export`."""
    stay_inside(os.environ)
    from launcher.export import export_run

    taken, skipped = export_run(options.run, options.out, options.step, int(options.shard_gb * 1e9), options.trust)
    for line in skipped:
        print(f"warning: {line}", file=sys.stderr)
    print(f"{options.out}: from {taken}")


def add_question(command: argparse.ArgumentParser) -> None:
    """What is asked, and of which model."""
    command.add_argument("model", type=Path, metavar="RUN_OR_DIR", help="a run's folder or an exported one")
    command.add_argument("prompts", nargs="*", metavar="TEXT", help="read from standard input, one a line, if none")
    add_trust(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def add_trust(command: argparse.ArgumentParser) -> None:
    """What may run of the code that came with a model: who asks says so, not a folder that may be somebody else's."""
    command.add_argument(
        "--trust",
        type=code_file,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="Python files that came with the model and may run, by name; read them first (none)",
    )


def fill(options: argparse.Namespace) -> None:
    """`pretrain fill`."""
    stay_inside(os.environ)
    from launcher import ask

    folder = ask.exported_folder(options.model)
    _show_answers(options, ask.fill(folder, _prompts(options), options.top, options.trust))


def generate(options: argparse.Namespace) -> None:
    """`pretrain generate`."""
    stay_inside(os.environ)
    from launcher import ask

    unless_told = 0.0 if options.top_p is None else 1.0
    sampling = ask.Sampling(
        temperature=unless_told if options.temperature is None else options.temperature,
        top_p=options.top_p or 1.0,
        seed=options.seed,
    )
    folder = ask.exported_folder(options.model)
    _show_answers(options, ask.generate(folder, _prompts(options), options.max_tokens, sampling, options.trust))


def _prompts(options: argparse.Namespace) -> list[str]:
    """The texts of the command line, or the lines of standard input.

    Raises:
        UsageError: There is none.
    """
    lines = [] if options.prompts or sys.stdin.isatty() else sys.stdin.read().splitlines()
    prompts: list[str] = options.prompts or [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError("there is no text to answer", fix="write it behind the folder, or pipe texts in, one a line")
    return prompts


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
