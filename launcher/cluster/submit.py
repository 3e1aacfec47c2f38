"""Submitting: sbatch, and what its refusals mean."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from launcher.cluster.render import Start
from launcher.errors import EXIT_DONE, ClusterError, MissingDependencyError

REFUSALS = (
    ("invalid account", "the account is missing or is not yours", "--account NAME; yours: sacctmgr show user $USER -s"),
    ("invalid partition", "there is no such partition", "--partition NAME; those there are: sinfo -s"),
    (
        "no partition specified",
        "no partition is named, and the cluster has none by default",
        "--partition NAME (sinfo)",
    ),
    ("invalid qos", "the quality of service is not yours", "#SBATCH --qos in slurm/pretrain.sh"),
    ("invalid generic resource", "there are no such GPUs", "see what nodes have: sinfo -o '%P %N %G'"),
    ("requested node configuration", "no node has so many GPUs, cores or so much memory", "sinfo -o '%P %N %c %m %G'"),
    ("node count specification invalid", "there are not so many nodes", "--nodes N; sinfo -s tells how many there are"),
    ("more processors requested", "a node has fewer cores than ranks are asked for", "--slots N, or more --nodes"),
    ("invalid --time specification", "this is no time limit", "--time 4:00:00"),
    ("invalid time limit", "this is no time limit", "--time 4:00:00"),
    ("requested time limit", "the time limit is longer than the partition's", "--time LIMIT; sinfo -o '%P %l'"),
    ("unable to contact slurm controller", "Slurm's controller does not answer", "try again, or ask its operators"),
)
"""A piece of sbatch's message, what it means, what to do."""


def submit(start: Start) -> int:
    """Run sbatch.

    Raises:
        MissingDependencyError: It is not here.
        ClusterError: It refuses.
    """
    if shutil.which(start.argv[0]) is None:
        raise MissingDependencyError("there is no sbatch here", "PATH", "launch from a login node of the cluster")
    done = subprocess.run(
        start.argv,
        env={**os.environ, **dict(start.env)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # a cluster's own words may be in any encoding
        check=False,
    )
    if done.returncode != 0:
        raise explain_refusal(done.stderr)
    print(done.stderr, end="", file=sys.stderr)  # it may have changed what was asked for
    print(done.stdout.strip())
    return EXIT_DONE


def explain_refusal(told: str) -> ClusterError:
    """A refusal of sbatch as an error that says what to change."""
    said = " ".join(told.split())
    for piece, meaning, fix in REFUSALS:
        if piece in said.lower():
            return ClusterError(f"{meaning} ({said})", "sbatch", fix)
    return ClusterError(f"sbatch refused: {said or 'without a word'}", "sbatch", "mend what it names")
