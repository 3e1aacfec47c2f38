"""This process among the others: joining the group, threads, and the few small exchanges a step needs."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import deepspeed.comm
import numpy as np
import torch
import torch.distributed
from deepspeed.accelerator import get_accelerator
from numpy.typing import NDArray
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from launcher.cluster.environment import refuse_unused_gpus
from launcher.cluster.rank import Place, export
from launcher.cluster.rendezvous import prepare
from launcher.errors import ClusterError

RENDEZVOUS_TIMEOUT = timedelta(minutes=30)


def join_ranks(place: Place, num_threads: int) -> torch.device:
    """Join the process group of the run and bind this process to its device.

    Args:
        place: Rank, world size and rendezvous of this process.
        num_threads: CPU threads torch may use here; more ranks than cores otherwise fight over them (a step of 25 ms
            took 350 to 2,000 ms, measured on two cores).

    Returns:
        The device of this rank.

    Raises:
        ClusterError: The first host cannot be reached, its port is taken, or the ranks were started as if they were
            not of one run.
        MissingDependencyError: Slurm gave GPUs that torch does not see.
    """
    prepare(place, os.environ)
    export(place, os.environ)
    torch.set_num_threads(num_threads)
    _skip_shared_memory_op()
    accelerator = get_accelerator()
    refuse_unused_gpus(accelerator.device_name(), os.environ)
    if accelerator.device_name() != "cpu":
        # Where each task sees its own devices only (srun --gpus-per-task=1), the local rank counts others as well.
        os.environ["LOCAL_RANK"] = str(place.local_rank % accelerator.device_count())
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    store = _agree(place)
    deepspeed.init_distributed(
        dist_backend=accelerator.communication_backend_name(),
        auto_mpi_discovery=False,
        verbose=False,
        timeout=RENDEZVOUS_TIMEOUT,
    )
    del store  # torch's own has taken over the server
    return torch.device(accelerator.current_device_name())


def device_bytes() -> int | None:
    """Memory of this rank's accelerator; None on a CPU, whose memory is the host's."""
    accelerator = get_accelerator()
    return None if accelerator.device_name() == "cpu" else int(accelerator.total_memory())


def _agree(place: Place) -> Any:
    """Make sure that the ranks that come to one port are those of one run: otherwise they would wait for each other.

    Returns:
        The store they met in; torch's own, at the same port, shares its server.

    Raises:
        ClusterError: They were told different world sizes, or two of them the same rank.
    """
    if place.world_size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun agrees by itself
        return None
    store = TCPStore(
        place.master_addr,
        place.master_port,
        is_master=place.rank == 0,
        timeout=RENDEZVOUS_TIMEOUT,
        wait_for_workers=False,
        multi_tenant=True,
    )
    own = str(place.world_size)
    first = store.compare_set("launcher/world_size", "", own).decode()
    where = f"rank {place.rank} on {socket.gethostname()}"
    fix = "start all ranks by one command, with the same hosts and slots everywhere; end what an earlier launch left"
    if first != own:
        raise ClusterError(f"this rank was told of {own} ranks, and another of {first}", where, fix)
    if store.add(f"launcher/rank/{place.rank}", 1) > 1:
        raise ClusterError(f"two processes were started as rank {place.rank}", where, fix)
    return store


def leave_ranks(say_farewell: Callable[[], None]) -> None:
    """Leave the process group after a run that ended well. After an error nobody waits for anybody.

    Args:
        say_farewell: Called when every rank has come here: whoever ends from then on is not missed.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        say_farewell()
        torch.distributed.destroy_process_group()


def ranks_per_model(engine: Any) -> int:
    """Ranks side by side that have a part each of every shared matrix, and compute the same samples (AutoTP)."""
    return max(int(engine.autotp_size()), 1)


def gather(values: NDArray[Any]) -> NDArray[Any]:
    """Collect a small vector of 64-bit numbers from every rank.

    Args:
        values: int64, uint64 or float64 [N], the same N on every rank.

    Returns:
        The same dtype, [world_size, N], in the order of ranks, so that sums over it are the same everywhere.
    """
    local = torch.from_numpy(values.view(np.int64).copy()).to(get_accelerator().current_device_name())
    parts = [torch.empty_like(local) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, local)
    return torch.stack(parts).cpu().numpy().view(values.dtype)


def hosts() -> list[str]:
    """The names of the machines of all ranks."""
    return exchange(socket.gethostname())


def share(value: Any) -> Any:
    """Rank 0's JSON value, on every rank. (`broadcast_object_list` would unpickle.)"""
    device = get_accelerator().current_device_name()
    told = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    length = torch.tensor([told.numel()], device=device)
    torch.distributed.broadcast(length, src=0)
    if torch.distributed.get_rank() != 0:
        told = torch.empty(int(length), dtype=torch.uint8, device=device)
    torch.distributed.broadcast(told, src=0)
    return json.loads(told.cpu().numpy().tobytes())


def exchange(value: Any, group: Any = None, device: str | None = None) -> list[Any]:
    """Every rank's JSON value, in the order of ranks. (`all_gather_object` would unpickle.)

    Args:
        value: This rank's.
        group: Whose ranks; None for all.
        device: Where the group's back end wants its tensors; None for this rank's accelerator.
    """
    place = device or get_accelerator().current_device_name()
    world_size = torch.distributed.get_world_size(group)
    told = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(place)
    lengths = [torch.zeros(1, dtype=torch.int64, device=place) for _ in range(world_size)]
    torch.distributed.all_gather(lengths, torch.tensor([told.numel()], device=place), group=group)
    longest = max(int(length) for length in lengths)
    padded = torch.cat([told, torch.zeros(longest - told.numel(), dtype=torch.uint8, device=place)])
    everyone = [torch.zeros(longest, dtype=torch.uint8, device=place) for _ in range(world_size)]
    torch.distributed.all_gather(everyone, padded, group=group)
    texts = [row[: int(length)].cpu().numpy().tobytes() for row, length in zip(everyone, lengths, strict=True)]
    return [json.loads(text) for text in texts]


def _skip_shared_memory_op() -> None:
    # On CPU, init_distributed always compiles a shared-memory all-reduce (80 s, and an error without g++) that gloo
    # does not need. There is no switch for it; this table is where DeepSpeed itself notes what can be built, and looks
    # for nothing else. Whoever reads it before it is there makes DeepSpeed try a compiler for each operation.
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def device_model() -> str:
    """The accelerator's product name; empty on a CPU."""
    return torch.cuda.get_device_name() if get_accelerator().device_name() == "cuda" else ""


def multiplies_bf16() -> bool:
    """Whether bf16 matmuls run in hardware here.

    On a CPU without AVX512-BF16 or AMX torch falls back to a loop: a backward pass took 15 s where fp32 took 0.6 s
    (measured, 2,048 tokens of a 3.5 M parameter model on AVX2).
    """
    if get_accelerator().device_name() == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if get_accelerator().device_name() == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))  # a V100 emulates it
    return bool(get_accelerator().is_bf16_supported())
