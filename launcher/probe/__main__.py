"""`python -m launcher.probe …`: one rank of a check."""

from __future__ import annotations

import argparse
import sys

from launcher.errors import EXIT_INTERRUPTED, LauncherError
from launcher.probe.options import add_options
from launcher.probe.program import leave, run


def main() -> int:
    """Run one rank and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher.probe",
        description="Look for what would stop or slow a run, before its first step, on every rank.",
        allow_abbrev=False,
    )
    add_options(parser)
    try:
        return run(parser.parse_intermixed_args())
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    leave(main())
