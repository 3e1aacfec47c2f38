"""The words of `pretrain check`."""

from __future__ import annotations

import argparse
from pathlib import Path

from launcher.probe.pairs import LEAST_BYTES_PER_S


def add_options(parser: argparse.ArgumentParser) -> None:
    """The words of the command; those of launcher/train.py are taken as well."""
    parser.add_argument("overrides", nargs="*", metavar="[RECIPE] key=value", help="a recipe, and fields of it")
    parser.add_argument("--recipe", metavar="NAME_OR_PATH", help="as launcher/train.py takes it (the quick start's)")
    parser.add_argument("--ds_config", metavar="NAME_OR_PATH", help="DeepSpeed JSON of the run")
    parser.add_argument("--budget", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hostfile", type=Path, metavar="FILE", help="names the hosts, rank by rank")
    parser.add_argument("--exclude-to", type=Path, metavar="FILE", help="gets unfit hosts, for Slurm's --exclude")
    parser.add_argument("--hostfile-to", type=Path, metavar="FILE", help="gets a hostfile of the others")
    parser.add_argument(
        "--wait", type=_positive, default=120.0, metavar="S", help="for all ranks to come (%(default)g)"
    )
    parser.add_argument("--round", type=_positive, default=60.0, metavar="S", help="for each answer (%(default)g)")
    parser.add_argument("--tolerance", type=_share, metavar="SHARE", help="of others' speed (0.5; accelerators 0.8)")
    parser.add_argument(
        "--least-mb-per-s", type=_positive, default=LEAST_BYTES_PER_S / 1e6, metavar="N", help="of a link (%(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
