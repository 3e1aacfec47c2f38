"""Whether there is room: disk for checkpoints, host memory for offload, open files; and the packages a recipe needs."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import units
from launcher.cluster.host_memory import available_bytes
from launcher.config.compiled_ops import check_ops, offload_devices
from launcher.config.deepspeed import swap_folders, zero_stage
from launcher.config.recipe import Recipe
from launcher.doctor.findings import Finding, from_error
from launcher.doctor.versions import OPTIONAL, installed
from launcher.errors import LauncherError, MissingDependencyError
from launcher.plan.memory import (
    REDUCE_BUCKET,
    kept_gradient_bytes,
    left_on_device,
    offloaded_bytes,
    parameters_of_rank,
    state_bytes,
)
from launcher.plan.parameters import count_parameters, count_tables
from launcher.shards.manifest import Manifest

CHECKPOINT_BYTES = 12
"""Of a parameter in a checkpoint: its master weight and two moments in fp32. Source: checkpoint/save.py."""
EXPORT_BYTES = 4
"""Of a parameter in the exported folder, at most."""
OPEN_FILES_BESIDES = 512
"""Of a rank beside its shards: libraries, sockets, logs (assumption)."""
GPU_PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}


@dataclass(frozen=True, slots=True)
class World:
    """How many ranks on how many nodes."""

    ranks: int
    nodes: int

    @property
    def ranks_per_node(self) -> int:
        """On the fullest node."""
        return -(-self.ranks // self.nodes)


def look_at_packages(recipe: Recipe, ds_file: Mapping[str, Any]) -> Iterator[Finding]:
    """Packages and compilers that this run needs."""
    wanted = {
        "liger-kernel": recipe.model.liger,
        "megablocks": recipe.model.experts == "megablocks",
        GPU_PACKAGES.get(recipe.model.attention, ""): recipe.model.attention in GPU_PACKAGES,
    }
    for name in (name for name, is_wanted in wanted.items() if is_wanted and installed(name) is None):
        use, fix = OPTIONAL.get(name, (f"model.attention={recipe.model.attention}", f"pip install {name}"))
        yield Finding(name=name, state="wrong", found=f"not installed, and the recipe has {use}", fix=fix)
    try:
        for note in check_ops(dict(ds_file), recipe.optim.host_adam):
            yield Finding(name="cpu_adam", state="note", found=note, fix="")
    except MissingDependencyError as error:
        yield from_error("compiled ops", error)


def look_at_space(
    recipe: Recipe,
    manifests: Mapping[str, Manifest],
    ds_file: Mapping[str, Any],
    world: World | None,
    device_bytes: int | None,
) -> Iterator[Finding]:
    """Whether disk, memory and open files suffice.

    Args:
        recipe: Of the run.
        manifests: Of its shards.
        ds_file: The DeepSpeed JSON; empty where none was given.
        world: How many ranks there will be.
        device_bytes: Memory of the smallest accelerator of this machine; None where it has none.
    """
    yield from _open_files(manifests)
    if not manifests:
        return
    vocab_size = next(iter(manifests.values())).tokenizer.vocab_size
    num_parameters = count_parameters(recipe.model, vocab_size)
    if num_parameters is None:
        found = "its size is not in the recipe's numbers: disk and memory are not looked at"
        yield Finding(
            name="model", state="note", found=found, fix="set hidden_size, num_hidden_layers, intermediate_size"
        )
        return
    yield Finding(name="model", state="ok", found=f"about {units.count(num_parameters)} parameters")
    yield _disk(recipe, num_parameters)
    if not ds_file or world is None:
        return
    sharing = recipe.model.tensor_parallel
    of_rank = parameters_of_rank(num_parameters, count_tables(recipe.model, vocab_size), sharing)
    num_sharing = max(world.ranks // sharing, 1)
    yield _state(recipe, dict(ds_file), num_parameters, of_rank, world, device_bytes)
    if offload_devices(dict(ds_file))[0] == "cpu":
        besides = kept_gradient_bytes(zero_stage(dict(ds_file)), _weight_bytes(recipe), _passes(recipe, world))
        yield _host_memory(offloaded_bytes(of_rank, world.ranks_per_node, num_sharing, besides))
    for folder in swap_folders(dict(ds_file)):
        yield _drive(folder, offloaded_bytes(of_rank, world.ranks_per_node, num_sharing))


def checkpoint_bytes(recipe: Recipe, num_parameters: int) -> int:
    """Disk that a run takes at most: the checkpoints it keeps, one that is being written, and the export."""
    return num_parameters * (CHECKPOINT_BYTES * (recipe.checkpoint.keep_last + 1) + EXPORT_BYTES)


def _disk(recipe: Recipe, num_parameters: int) -> Finding:
    needed = checkpoint_bytes(recipe, num_parameters)
    folder = next(path for path in (recipe.run_folder, *recipe.run_folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    told = (
        f"{units.size(needed)} for {recipe.checkpoint.keep_last} checkpoints, one being written and the export; "
        f"{units.size(free)} free in {folder}"
    )
    if needed <= free:
        return Finding(name="disk", state="ok", found=told)
    fix = "runs=FOLDER on a larger disk, or a smaller checkpoint.keep_last"
    return Finding(name="disk", state="wrong", found=told, fix=fix)


def _state(
    recipe: Recipe,
    ds_file: dict[str, Any],
    num_parameters: int,
    of_rank: int,
    world: World,
    device_bytes: int | None,
) -> Finding:
    """What a rank holds between passes, against its device, or its part of this machine where there is none.

    Where ranks share matrices, `of_rank` parameters are in the model of each, and all, in fp32, while it is read from a
    folder.
    """
    zero, sharing = ds_file.get("zero_optimization", {}), recipe.model.tensor_parallel
    optimizer, parameters = (device != "none" for device in offload_devices(ds_file))
    whole = state_bytes(
        of_rank,
        stage=zero_stage(ds_file),
        world_size=max(world.ranks // sharing, 1),
        weight_bytes=_weight_bytes(recipe),
        reduce_bucket=int(zero.get("reduce_bucket_size", REDUCE_BUCKET)),
        ranks_of_second_copy=int(zero.get("zero_hpz_partition_size", 1)),
    )
    held = left_on_device(whole, offloads_optimizer=optimizer, offloads_parameters=parameters)
    built = 4 * num_parameters if sharing > 1 and recipe.model.continue_from is not None else 0
    while_built = f" ({units.size(built)} while the whole model is read)" if built else ""
    room = device_bytes or memory().total_bytes // world.ranks_per_node
    parts = ("parameters", "gradients", "optimizer", "buffers")
    found = (
        f"a rank holds {units.size(held.total)} ({', '.join(f'{p} {units.size(getattr(held, p))}' for p in parts)}), "
        f"and activations besides{while_built}; {'an accelerator' if device_bytes else 'its part of the memory'} here "
        f"has {units.size(room)}"
    )
    if max(held.total, built) < room:
        return Finding(name="memory", state="ok", found=found)
    fix = "a higher stage, offload or more ranks (--ds_config, --ranks); compute nodes may have more than this machine"
    return Finding(name="memory", state="note", found=found, fix=fix)


def _weight_bytes(recipe: Recipe) -> int:
    return 2 if recipe.train.precision in ("bf16", "fp16") else 4


def _passes(recipe: Recipe, world: World) -> int:
    """Of a step; 1 where the batch cannot be cut, which is told elsewhere."""
    try:
        return recipe.cut_batch(world.ranks).grad_accum_steps
    except LauncherError:
        return 1


def _host_memory(needed: int) -> Finding:
    """The optimizer's state is cut into as many parts as there are ranks; a node holds those of its own."""
    there = memory().total_bytes
    told = f"the offloaded optimizer takes {units.size(needed)} of a node's; this machine has {units.size(there)}"
    if needed <= there:
        return Finding(name="host memory", state="ok", found=told)
    fix = "more nodes, or a --ds_config without offload; compute nodes with more memory than this machine are fine"
    return Finding(name="host memory", state="note", found=told, fix=fix)


def _drive(folder: Path, needed: int) -> Finding:
    """A drive that state is offloaded to; the run looks again on each of its nodes."""
    if not folder.is_dir():
        told = f"there is no folder {folder} on this machine; on every node it takes {units.size(needed)}"
        fix = "pretrain ds-config --from FILE --nvme-path FOLDER --out FILE, unless the compute nodes have it"
        return Finding(name="nvme", state="note", found=told, fix=fix)
    free = shutil.disk_usage(folder).free
    told = f"{units.size(needed)} of a node's are taken in {folder}; {units.size(free)} are free there on this machine"
    fix = "" if needed <= free else "more nodes, or a --ds_config that offloads to cpu"
    return Finding(name="nvme", state="ok" if needed <= free else "note", found=told, fix=fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of memory of this machine."""

    total_bytes: int
    free_bytes: int
    """What can be had before the kernel, or the job's cgroup, ends a process."""


def memory() -> Memory:
    """Ask the kernel. Source: proc(5), /proc/meminfo."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return Memory(total_bytes=fields["MemTotal"], free_bytes=available_bytes())


def _open_files(manifests: Mapping[str, Manifest]) -> Iterator[Finding]:
    """A rank keeps every file of the shards open; it raises its own limit as far as it may (`shards.blocks`)."""
    needed = OPEN_FILES_BESIDES + sum(1 for manifest in manifests.values() for _ in manifest.files())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= hard < needed:
        yield Finding(
            name="open files",
            state="wrong",
            found=f"a rank opens about {needed} files, and may open {hard}",
            fix=f"ask for a hard limit of {needed} or more (`ulimit -Hn`)",
        )
