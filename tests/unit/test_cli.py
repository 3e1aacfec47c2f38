"""The command line: a command starts without what only others need, and none is missing where it is asked for."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

import pytest

from launcher.cli import build_parser, main


def commands(parser: argparse.ArgumentParser) -> set[str]:
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return set(action.choices)


def test_a_command_starts_without_recipes_where_it_needs_none() -> None:
    program = (
        "import sys\n"
        "from launcher.cli import build_parser\n"
        "build_parser('prepare')\n"
        "print(sorted({'pydantic', 'yaml', 'numpy', 'torch', 'launcher.config.recipe'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("word", ["", "--help", "lanch", "launch", "checkpoints", "ds-config"])
def test_every_command_is_there_for_who_asks_for_none_or_for_one_that_brings_much(word: str) -> None:
    assert commands(build_parser("prepare")) < commands(build_parser(word))
    assert {"checkpoints", "ds-config", "launch"} <= commands(build_parser(word))


def test_a_misspelled_command_is_told_with_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lanch"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert all(f"'{name}'" in told for name in commands(build_parser()))


@pytest.mark.parametrize(
    ("reader", "code"), [("head -c 1", 0), ("cat", 75)], ids=["who reads stops", "a process of ours"]
)
def test_a_broken_pipe_is_an_end_where_nobody_reads_on_and_a_failure_elsewhere(reader: str, code: int) -> None:
    program = (
        "import sys, time\n"
        "from launcher import cli\n"
        "def command(options):\n"
        "    print('a line', flush=True)\n"
        "    time.sleep(0.5)\n"
        "    raise BrokenPipeError(32, 'Broken pipe')\n"
        "cli.recipe = command\n"
        "print(cli.main(['recipe', 'x']), file=sys.stderr)"
    )
    ours = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
    done = subprocess.run(f"{ours} | {reader} >/dev/null", shell=True, capture_output=True, text=True, check=True)
    assert done.stderr.endswith(f"{code}\n")
    assert ("Broken pipe" in done.stderr) == bool(code)
