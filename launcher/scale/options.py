"""The words of `pretrain scale`, apart from the program so that the command line starts at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from launcher.config.arguments import positive

LEAST_STEPS = 20
"""Fewer say little of the spread."""


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. model.num_hidden_layers=4")
    command.add_argument("--sizes", required=True, metavar="N,N,…", help="ranks here; in a job of Slurm, nodes")
    kind = command.add_mutually_exclusive_group(required=True)
    kind.add_argument("--strong", action="store_true", help="the batch is the recipe's at every size")
    kind.add_argument(
        "--weak", action="store_true", help="the batch is the recipe's at the smallest, and grows with it"
    )
    command.add_argument("--ds_config", default="zero3.json", metavar="FILE", help="DeepSpeed JSON (%(default)s)")
    command.add_argument("--steps", type=positive, default=LEAST_STEPS, metavar="N", help="timed, a size (%(default)s)")
    command.add_argument("--warm-up", type=positive, default=5, metavar="N", help="steps not timed (%(default)s)")
    command.add_argument(
        "--srun-option", action="append", default=[], metavar="WORD", help="of a container, e.g. --container-image=…"
    )
    command.add_argument(
        "--before-python", action="append", default=[], metavar="WORD", help="of a container, e.g. apptainer"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="for table and picture (default: scaling/RECIPE)")
