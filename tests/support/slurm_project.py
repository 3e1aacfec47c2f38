"""Projects whose training is a stub, for tests of `slurm/pretrain.sh` and what it does with a job."""

from __future__ import annotations

from pathlib import Path

import tiny
from slurm_cluster import ROOT

SCRIPT = ROOT / "slurm" / "pretrain.sh"

# Rank 1 is a second behind: by then srun has ended it, and would tell its 143 for the job's code.
STUB = """
import os, sys, time
life, rank = os.environ.get("SLURM_RESTART_COUNT", "0"), os.environ["SLURM_PROCID"]
if rank == "0":
    print("stub of life", life, *sys.argv[1:], flush=True)
    until = time.time() + 20  # both have begun
    while os.environ["SLURM_NTASKS"] == "2" and time.time() < until:
        if os.path.exists(os.environ["PRETRAIN_LOGS"] + "/rank-00001.log"):
            break
        time.sleep(0.1)
time.sleep(int(rank))
sys.exit({codes}[int(life)])
"""

# A disk of its own: the node's cannot be made smaller than what others have left there.
FILL_SHM = "mount -t tmpfs -o size=1M full /dev/shm && ! head -c 2M /dev/zero >/dev/shm/full"
EMPTY_SHM = "! grep -q '^full /dev/shm ' /proc/mounts || umount --lazy /dev/shm"


def project(folder: Path, train: str) -> Path:
    """A project whose launcher/train.py is this text, and everything else the shipped one."""
    (folder / "slurm").symlink_to(ROOT / "slurm")
    (folder / "launcher").mkdir()
    for entry in (ROOT / "launcher").iterdir():
        if entry.name not in ("train.py", "__pycache__"):
            (folder / "launcher" / entry.name).symlink_to(entry)
    (folder / "launcher" / "train.py").write_text(train)
    return folder


def tiny_recipe(folder: Path) -> str:
    """The path of a recipe that all checks pass."""
    return str(tiny.write_recipe(folder / "r.yaml", tiny.recipe_tree("mlm", tiny.make_shards(folder), folder / "runs")))
