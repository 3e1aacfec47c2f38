"""Two sides in turn: calls in this process, or peers that live in a process, or an environment, of their own.

A peer that is asked often (`Peer`) imports once and then answers one JSON line with another; one that is a whole
program (`run`) is started anew each time, and its time counts from start to exit.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from benchmarks.support import Call, Ratio, timed

ROOT = Path(__file__).resolve().parent.parent

INSTALL = (
    "python -m venv .venv-peers, .venv-peers/bin/pip install torch==2.13.0, then -r benchmarks/requirements.txt, then"
    " --no-deps -r benchmarks/requirements-peers.txt; and give --peer-python .venv-peers/bin/python"
)

Timing = tuple[float, float]
"""Elapsed and process seconds."""
Timed = Callable[[], Timing]


@dataclass(frozen=True, slots=True)
class Value:
    """One number with the bar it is held against."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_most: bool = True
    """Whether the bar is a ceiling or a floor."""

    @property
    def met(self) -> bool | None:
        """None where there is no bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    @property
    def line(self) -> str:
        """For people."""
        told = f"{self.name}: {self.value:.4g} {self.unit}".rstrip()
        if self.bar is None:
            return told
        return (
            f"{told}  bar {'at most' if self.at_most else 'at least'} {self.bar:g}: {'met' if self.met else 'MISSED'}"
        )


class PeerError(RuntimeError):
    """A peer that cannot be started, or broke down."""


class Peer:
    """A process that answers one JSON line with another; see `answer` for its side.

    Args:
        python: Interpreter of the environment it is installed in.
        module: Its name from the checkout, e.g. `benchmarks.peers.megatron_dataset`.
    """

    def __init__(self, python: Path, module: str, *arguments: str) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [str(python), "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        self.about = self._read()
        """What it said when it was ready."""

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Let it do something; raises PeerError where it cannot."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"{self._module} is gone") from None
        return self._read()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self._module} ended with {self._process.wait(timeout=60)}; see above")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise PeerError(f"{self._module}: {told['error']}")
        return told


def answer(about: dict[str, Any], handlers: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """A peer's side: say what it is, then do what it is asked until its input ends.

    What libraries print goes to stderr.
    """
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        print(json.dumps(about), file=out, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                told = handlers[request.pop("do")](**request)
            except Exception as error:  # told, not raised: the other side decides
                told = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(told), file=out, flush=True)


def run(command: Sequence[str | Path], **variables: str) -> Timing:
    """Run a program from the checkout to its end: elapsed, and process seconds of it and its children.

    Raises:
        PeerError: It failed.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment(**variables), capture_output=True)
    elapsed_s = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise PeerError(f"{' '.join(map(str, command))}\n{done.stderr.decode()[-2000:]}")
    return elapsed_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ratio(
    name: str,
    ours: Call,
    peer_name: str,
    peer: Call,
    rounds: int,
    *,
    ours_calls: int = 1,
    peer_calls: int = 1,
    bar: float | None = None,
) -> Ratio:
    """Compare two calls in this process, each made `*_calls` times a round; both run once before the clock starts.

    Args:
        name: What is measured.
        ours: Does the work once.
        peer_name: Program, version and form of the peer.
        peer: Does the same work once.
        rounds: How often each is timed; 1 or more.
        ours_calls: Calls of ours in a round: enough for a few milliseconds.
        peer_calls: Calls of the peer in a round.
        bar: The ratio to reach.
    """
    ours(), peer()
    return in_turn(name, partial(timed, ours, ours_calls), peer_name, partial(timed, peer, peer_calls), rounds, bar=bar)


def in_turn(
    name: str,
    ours: Timed,
    peer_name: str,
    peer: Timed,
    rounds: int,
    *,
    by: Literal["wall", "cpu"] = "wall",
    bar: float | None = None,
) -> Ratio:
    """Compare two calls that time themselves, round by round; which goes first changes."""
    timings: tuple[list[Timing], list[Timing]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            timings[side].append((ours, peer)[side]())
    return compared(name, timings[0], peer_name, timings[1], by=by, bar=bar)


def compared(
    name: str,
    ours: Sequence[Timing],
    peer_name: str,
    peer: Sequence[Timing],
    *,
    by: Literal["wall", "cpu"] = "wall",
    bar: float | None = None,
) -> Ratio:
    """The ratio of timings taken in turn."""
    place = 0 if by == "wall" else 1
    ratios = [theirs[place] / own[place] for own, theirs in zip(ours, peer, strict=True)]
    return Ratio(
        name=name if by == "wall" else f"{name} (cpu)",
        peer=peer_name,
        rounds=len(ratios),
        ours_s=statistics.median(timing[0] for timing in ours),
        peer_s=statistics.median(timing[0] for timing in peer),
        ours_cpu_s=statistics.median(timing[1] for timing in ours),
        peer_cpu_s=statistics.median(timing[1] for timing in peer),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        bar=bar,
    )


def installed(python: Path, package: str) -> bool:
    """Whether an environment has a package; where it has not, a line on stderr says how it gets there."""
    code = f"import importlib.metadata; importlib.metadata.version({package!r})"
    if subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0:
        return True
    told = f"left out: {package} is not installed for {python}\n  fix:   {INSTALL}"
    print(told, file=sys.stderr)
    return False


def add_peer_python(parser: ArgumentParser) -> None:
    """`--peer-python`."""
    parser.add_argument(
        "--peer-python",
        type=_program,
        default=Path(sys.executable),
        metavar="PATH",
        help="python of the environment that benchmarks/requirements.txt describes (default: the running one)",
    )


def _program(word: str) -> Path:
    if shutil.which(word) is None:
        raise ArgumentTypeError(f"there is no program {word}; {INSTALL}")
    return Path(word)


def environment(**variables: str) -> dict[str, str]:
    """This process's, with what keeps libraries from talking to the network or starting threads of their own."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **quiet, **variables}
