"""The part of a DeepSpeed JSON that moves optimizer and weights to the host's memory or to NVMe."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.config.deepspeed_check import ADAM_BUFFERS, LEAST_SWAPPED
from launcher.config.deepspeed_choices import LEAST_SIZE, DsChoices, Origin, Setting
from launcher.config.deepspeed_keys import keys_of

SUB_GROUPS = 32
"""Groups in which an offloaded optimizer would step if they could end anywhere: copying and computing overlap, and
no step holds all. DeepSpeed ends one behind the parameter that fills it: of 100M parameters 16 or more are left, until
a rank's part is so small that the floor of a group decides: LEAST_SIZE with cpu (up to 4 ranks), what reaches the drive
on NVMe (up to 16)."""
NVME_GROUP = 1_500_000
"""Values of a group on NVMe where the model's size is not known: files of 6 MB, of which a step holds four. Of 100M
parameters on more than 3 ranks they are fewer than 16."""
MEANINGS = {
    ("offload_optimizer", "cpu"): (
        "the optimizer's state and step are the host's",
        "12/N bytes a parameter go from the device to the host",
    ),
    ("offload_optimizer", "nvme"): (
        "the optimizer's state lies on the node's drive and comes group by group; its step is the host's",
        "12/N bytes a parameter go from the device to the drive",
    ),
    ("offload_param", "cpu"): (
        "weights lie on the host and come layer by layer",
        "2/N bytes a parameter (bf16) go from the device to the host",
    ),
    ("offload_param", "nvme"): (
        "weights lie on the node's drive and come layer by layer",
        "2/N bytes a parameter (bf16) go from the device to the drive",
    ),
}
"""Of a device: what it means, and what it does to memory."""
AIO_MEANINGS = {
    "block_size": ("bytes of one request to the drive", "groups below it stay in memory"),
    "queue_depth": ("requests on their way at once, of each thread", "none"),
    "intra_op_parallelism": ("threads that read or write one tensor together", "none"),
    "single_submit": ("requests are handed over one by one, or together", "none"),
    "overlap_events": ("new requests go out while earlier ones are under way", "none"),
}


def offload_settings(choices: DsChoices) -> Iterator[Setting]:
    """Devices, pinned memory, groups of the optimizer and, on NVMe, folder, buffers and asynchronous I/O."""
    for name, device in (
        ("offload_optimizer", choices.offload_optimizer),
        ("offload_param", choices.offload_param),
    ):
        if device == "none":
            continue
        meaning, memory = MEANINGS[name, device]
        yield Setting(
            key=f"zero_optimization.{name}.device",
            value=device,
            origin="given",
            why=f"--{name.replace('_', '-')}",
            meaning=meaning,
            memory=memory,
        )
        yield from _block(choices, f"zero_optimization.{name}")
        if device == "nvme":
            yield from _nvme_block(choices, f"zero_optimization.{name}")
    yield from _sub_group(choices)
    if "nvme" in (choices.offload_optimizer, choices.offload_param):
        yield from _aio(choices)


def _block(choices: DsChoices, block: str) -> Iterator[Setting]:
    given = choices.pin_memory is not None
    yield Setting(
        key=f"{block}.pin_memory",
        value=choices.pin_memory if given else True,
        origin="given" if given else "default",
        why="--pin-memory" if given else "copies to the device run beside computing",
        meaning="the host's copies are never paged out",
        memory="the host cannot use it for anything else",
    )


def _nvme_block(choices: DsChoices, block: str) -> Iterator[Setting]:
    yield Setting(
        key=f"{block}.nvme_path",
        value=choices.nvme_path,
        origin="given",
        why="--nvme-path",
        meaning="folder on a drive of the node itself; a run makes a folder of its own in it, and clears it at the end",
        memory="on the drive, of each rank: 16/N bytes a parameter (optimizer and gradients)"
        if block.endswith("optimizer")
        else "on the drive, of each rank: 2/N bytes a parameter (bf16)",
    )
    if block.endswith("optimizer"):
        yield Setting(
            key=f"{block}.buffer_count",
            value=ADAM_BUFFERS,
            origin="derived",
            why="AdamW has weights, gradients and two moments",
            meaning="buffers for a group on its way",
            memory=f"{ADAM_BUFFERS} x 4 bytes for each value of the largest group",
        )
        return
    known = keys_of("zero_optimization.offload_param")
    largest = int(known["buffer_size"].default or 0)
    small = choices.num_parameters is not None and choices.num_parameters < largest
    yield Setting(
        key=f"{block}.buffer_size",
        value=choices.num_parameters if small else largest,
        origin="derived" if small else "default",
        why="no tensor is larger than the model" if small else "DeepSpeed's",
        meaning="values of the largest part of a tensor that a rank can hold",
        memory=f"{known['buffer_count'].default} such buffers",
    )
    yield Setting(
        key=f"{block}.max_in_cpu",
        value=int(known["max_in_cpu"].default or 0),
        origin="default",
        why="DeepSpeed's: what fits into the host's memory need not be read again",
        meaning="values of the weights that stay in the host's memory; only what is beyond goes to NVMe",
        memory="2 bytes each (bf16) in the host's memory",
    )


def _sub_group(choices: DsChoices) -> Iterator[Setting]:
    size, origin, why = _sub_group_size(choices)
    if size is not None:
        on_nvme = choices.offload_optimizer == "nvme"
        held = "four copies of the largest group (no parameter is cut)" if on_nvme else "the copies of one group"
        yield Setting(
            key="zero_optimization.sub_group_size",
            value=size,
            origin=origin,
            why=why,
            meaning="values of a rank's part that the optimizer steps at once",
            memory=f"{held} beside all the rest",
        )


def _sub_group_size(choices: DsChoices) -> tuple[int | None, Origin, str]:
    if choices.sub_group_size is not None:
        return choices.sub_group_size, "given", "--sub-group-size"
    if choices.stage != 3 or choices.offload_optimizer == "none":
        return None, "default", ""
    if choices.num_parameters is not None:
        ranks = choices.num_ranks or 1
        least = LEAST_SIZE
        if choices.offload_optimizer == "nvme":
            block_bytes = choices.aio_block_size or int(keys_of("aio")["block_size"].default or 0)
            least = -(-max(LEAST_SWAPPED, block_bytes) // 4)
        size = max(choices.num_parameters // ranks // SUB_GROUPS, least)
        why = f"1/{SUB_GROUPS} of {choices.num_parameters} parameters on {ranks} ranks; a group ends with a parameter"
        return size, "derived", why
    if choices.offload_optimizer == "nvme":
        return NVME_GROUP, "derived", "DeepSpeed's 1000000000 makes one group of most models, and holds all in memory"
    return None, "default", ""


def _aio(choices: DsChoices) -> Iterator[Setting]:
    given = {
        "block_size": (choices.aio_block_size, "--aio-block-size"),
        "queue_depth": (choices.aio_queue_depth, "--aio-queue-depth"),
        "intra_op_parallelism": (choices.aio_threads, "--aio-threads"),
    }
    for name, (meaning, memory) in AIO_MEANINGS.items():
        value, option = given.get(name, (None, ""))
        yield Setting(
            key=f"aio.{name}",
            value=keys_of("aio")[name].default if value is None else value,
            origin="default" if value is None else "given",
            why="DeepSpeed's; ds_nvme_tune finds what a drive likes best" if value is None else option,
            meaning=meaning,
            memory=memory,
        )
