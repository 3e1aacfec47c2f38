"""The ranks of one machine, held by the one who launched: `python -m launcher.cluster.node`, started over ssh.

Standard input is the life-line. A line on it names a signal for the ranks; its end means that the launcher is gone, and
the ranks are ended by their process groups, never by a pattern. What they write is passed on for as long as anybody
reads, so that a rank that saves after the connection broke does not die of a closed pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from launcher.errors import EXIT_INTERRUPTED, ClusterError, LauncherError

SIGNALS = {name: getattr(signal, f"SIG{name}") for name in ("TERM", "USR1", "USR2")}
"""What the launcher may ask to be passed on, by a line of its own."""
SAVE_S = 120.0
"""Time the ranks have to save and end after a signal; DeepSpeed and torchrun give 30."""
POLL_S = 0.1


def main(arguments: Sequence[str]) -> int:
    """Start the ranks, hold them, and return the exit code of the first that failed."""
    options = _parse(arguments)
    try:
        secrets = _read_secrets(options.secrets)
        ranks = [_start(options, number, secrets) for number in range(options.ranks or 1)]
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    hold = _Hold(ranks)
    for name in ("HUP", "INT", "TERM"):
        signal.signal(getattr(signal, f"SIG{name}"), lambda *_: hold.end(EXIT_INTERRUPTED))
    for name in ("USR1", "USR2"):
        signal.signal(SIGNALS[name], lambda number, _: hold.send(signal.Signals(number)))
    return hold.wait()


class _Hold:
    """Running ranks, and why they have to end."""

    def __init__(self, ranks: list[subprocess.Popen[bytes]]) -> None:
        self._ranks = ranks
        self._relays = [_relay(rank) for rank in ranks]
        self._code: int | None = None
        self._deadline = 0.0
        self._rest = b""
        self._listening = True

    def send(self, number: signal.Signals) -> None:
        """Signal the group of every rank that still runs."""
        for rank in self._ranks:
            if rank.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(rank.pid, number)

    def end(self, code: int) -> None:
        """Ask all to end; `code` is the answer, unless there is one already."""
        if self._code is None:
            self._code = code
            self._deadline = time.monotonic() + SAVE_S
            self.send(signal.SIGTERM)

    def wait(self) -> int:
        """Until no rank runs."""
        while None in [rank.poll() for rank in self._ranks]:  # each is polled: `any` would stop at the first
            self._listen()
            failed = next((rank.returncode for rank in self._ranks if rank.returncode), 0)
            if failed:
                self.end(failed if failed > 0 else 128 - failed)
            if self._code is not None and time.monotonic() > self._deadline:
                self.send(signal.SIGKILL)
        for rank in self._ranks:  # what a rank left behind in its group ends with it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(rank.pid, signal.SIGKILL)
        for relay in (thread for pair in self._relays for thread in pair):
            relay.join(5.0)
        codes = [rank.returncode for rank in self._ranks if rank.returncode]
        last = codes[0] if codes else 0
        return self._code if self._code is not None else (last if last >= 0 else 128 - last)

    def _listen(self) -> None:
        if not self._listening:
            time.sleep(POLL_S)
            return
        if not select.select([0], [], [], POLL_S)[0]:
            return
        piece = os.read(0, 4096)
        if not piece:
            self._listening = False
            self.end(EXIT_INTERRUPTED)
            return
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            number = SIGNALS.get(line.decode("ascii", "replace").strip())
            if number is not None:
                self.send(number)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.cluster.node", allow_abbrev=False)
    parser.add_argument("--secrets", default="", metavar="NAMES", help="variables whose values come first, as JSON")
    parser.add_argument("--ranks", type=int, metavar="N", help="copies of the command, each a rank of its own")
    parser.add_argument("--first-rank", type=int, default=0, metavar="N")
    parser.add_argument("--world-size", type=int, metavar="N")
    parser.add_argument("--master", default="127.0.0.1:29500", metavar="HOST:PORT")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    return parser.parse_args(arguments)


def _read_secrets(names: str) -> dict[str, str]:
    """The line that comes first on standard input.

    Raises:
        ClusterError: It does not tell these names.
    """
    wanted = set(names.split(",")) - {""}
    if not wanted:
        return {}
    line = b""
    while not line.endswith(b"\n"):  # byte by byte: what follows belongs to the loop above
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    try:
        told = json.loads(line)
    except ValueError:
        told = None
    if not isinstance(told, dict) or set(told) != wanted:
        raise ClusterError(
            f"the values of {', '.join(sorted(wanted))} did not come", "standard input", "use pretrain launch"
        )
    return {str(name): str(value) for name, value in told.items()}


def _start(options: argparse.Namespace, number: int, secrets: dict[str, str]) -> subprocess.Popen[bytes]:
    env = {**os.environ, **secrets}
    if options.ranks is not None:
        address, _, port = options.master.rpartition(":")
        env |= {
            "RANK": str(options.first_rank + number),
            "WORLD_SIZE": str(options.world_size or options.ranks),
            "LOCAL_RANK": str(number),
            "LOCAL_WORLD_SIZE": str(options.ranks),
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
        }
    try:
        return subprocess.Popen(
            options.command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ClusterError(
            f"{options.command[0]} cannot be started: {error.strerror}",
            os.uname().nodename,
            "the project and its .venv must lie at the same path on every machine",
        ) from None


def _relay(rank: subprocess.Popen[bytes]) -> tuple[threading.Thread, threading.Thread]:
    assert rank.stdout is not None
    assert rank.stderr is not None
    threads = (
        threading.Thread(target=_pass_on, args=(rank.stdout, 1), daemon=True),
        threading.Thread(target=_pass_on, args=(rank.stderr, 2), daemon=True),
    )
    for thread in threads:
        thread.start()
    return threads


def _pass_on(source: IO[bytes], target: int) -> None:
    for line in source:
        with contextlib.suppress(OSError):  # nobody reads any more
            os.write(target, line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
