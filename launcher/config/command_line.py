"""The words behind `launcher/train.py`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from launcher.config.loading import DEFAULT_RECIPE
from launcher.errors import UsageError, did_you_mean


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UsageError: A word is neither an option nor `key=value`.
    """
    parser = argparse.ArgumentParser(
        prog="launcher/train.py", description="Pretrain a model.", allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument(
        "--ds_config", metavar="NAME_OR_PATH", help="DeepSpeed JSON: a path or a file of ds_configs/ (needed)"
    )
    parser.add_argument(
        "--recipe",
        default=DEFAULT_RECIPE,
        metavar="NAME_OR_PATH",
        help="YAML file or a name from recipes/ (%(default)s)",
    )
    parser.add_argument(
        "--budget",
        type=_seconds,
        metavar="TIME",
        help="fit the schedule to this much time of all starts together, e.g. 24h, 90m, 1h30m",
    )
    parser.add_argument("--local_rank", type=int, help="given by DeepSpeed's launcher; the environment says the same")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="fields of the recipe, e.g. train.num_steps=50"
    )
    try:
        options, unknown = parser.parse_known_intermixed_args(arguments)
    except (argparse.ArgumentError, argparse.ArgumentTypeError) as error:
        raise UsageError(str(error), "command line", parser.format_usage().strip()) from None
    if unknown:
        fix = did_you_mean(unknown[0].partition("=")[0], ("--ds_config", "--recipe", "--budget"))
        raise UsageError(f"unknown option {unknown[0]}", "command line", fix)
    if options.ds_config is None:  # checked here: argparse would print and exit by itself
        raise UsageError("--ds_config is missing", "command line", "e.g. --ds_config zero3.json")
    return options


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(?:([0-9.]+)d)?(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s)?", text)
    try:
        parts = [float(part or 0) for part in match.groups()] if match else []
    except ValueError:
        parts = []
    seconds = sum(part * size for part, size in zip(parts, (86400, 3600, 60, 1), strict=False))
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 24h, 90m or 1h30m")
    return seconds
