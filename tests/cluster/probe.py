"""One rank: say where it is, and add up all ranks over gloo."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed

from launcher.cluster.rank import export, find_place, with_master

place = with_master(find_place(os.environ))
export(place, os.environ)
torch.distributed.init_process_group("gloo")
total = torch.tensor([place.rank + 1.0])
torch.distributed.all_reduce(total)
torch.distributed.destroy_process_group()
folder = Path(sys.argv[-1])  # DeepSpeed's launcher puts --local_rank first
(folder / f"{place.rank}.json").write_text(
    json.dumps({**asdict(place), "sum": total.item(), "host": os.uname().nodename})
)
