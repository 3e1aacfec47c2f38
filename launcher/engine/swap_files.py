"""The folder on NVMe that a run swaps optimizer state and weights to: made, found large enough, cleared.

What lies there is of no use to a later start: a checkpoint holds everything.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from launcher.cluster.rank import Place
from launcher.config.compiled_ops import offload_devices
from launcher.config.deepspeed import swap_folders
from launcher.engine.process import exchange
from launcher.errors import DsConfigError
from launcher.units import size


def prepare_swap_files(ds_config: dict[str, Any], place: Place) -> None:
    """Begin with an empty folder on every node; every rank calls it.

    Raises:
        DsConfigError: On every rank, where a node has no such drive, or does not let us write there.
    """
    folders = swap_folders(ds_config)
    if not folders:
        return
    problem = ""
    if place.local_rank == 0:
        try:
            for folder in folders:
                if not folder.parent.is_dir():
                    raise FileNotFoundError(f"there is no folder {folder.parent}")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
        except OSError as error:
            problem = f"{os.uname().nodename}: {error}"
    _raise_together(problem, str(folders[0].parent))


def check_room(ds_config: dict[str, Any], model: torch.nn.Module, place: Place) -> None:
    """Whether what the ranks of this node swap fits onto its drive; every rank calls it.

    Args:
        ds_config: The resolved configuration.
        model: Partitioned.
        place: Of this process.

    Raises:
        DsConfigError: On every rank, where a node's drive is too small.
    """
    folders = swap_folders(ds_config)
    if not folders:
        return
    problem = ""
    if place.local_rank == 0:
        optimizer, param = offload_devices(ds_config)
        values = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
        weight_bytes = next(model.parameters()).element_size()
        bytes_a_value = 16 * (optimizer == "nvme") + weight_bytes * (param == "nvme")  # 16: master, moments, gradient
        needed = values * bytes_a_value * place.local_world_size / place.world_size
        free = shutil.disk_usage(folders[0]).free
        if free < needed:
            problem = f"{os.uname().nodename}: {size(needed)} are needed, {size(free)} are free"
    _raise_together(problem, str(folders[0].parent))


def clear_swap_files(ds_config: dict[str, Any], place: Place) -> None:
    """Delete what a run swapped; call it when nobody steps any more."""
    if place.local_rank == 0:
        for folder in swap_folders(ds_config):
            shutil.rmtree(folder, ignore_errors=True)


def _raise_together(problem: str, where: str) -> None:
    told = sorted({told for told in exchange(problem) if told})
    if told:
        raise DsConfigError(
            f"nothing can be offloaded to NVMe there: {'; '.join(told)}",
            where,
            "pretrain ds-config --from zero3_nvme --nvme-path FOLDER --out FILE, with a folder that every node has",
        )
