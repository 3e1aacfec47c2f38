"""What the ranks of the integration tests do; functions of plain values, run by `ranks.run_ranks`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def train(arguments: list[str]) -> int:
    """The training program itself; returns its exit code."""
    sys.argv = ["launcher.train", *arguments]
    program = runpy.run_module("launcher.train", run_name="launcher_train")
    return int(program["main"](arguments))


def train_and_tell(arguments: list[str]) -> tuple[int, str]:
    """The training program; returns its exit code and what it wrote to stderr."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        code = train(arguments)
    return code, told.getvalue()


def train_with_memory(arguments: list[str], available_bytes: int) -> tuple[int, str]:
    """The training program on a host with so much memory to spare."""
    from launcher.cluster import host_memory

    host_memory.available_bytes = lambda: available_bytes
    return train_and_tell(arguments)


def train_on_part_of_a_gpu(arguments: list[str], share: float) -> int:
    """The training program beside another that holds the rest of the device."""
    program = (
        "import sys, torch; free, _ = torch.cuda.mem_get_info(); "
        f"held = torch.empty(int(free * (1 - {share})), dtype=torch.uint8, device='cuda'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        return train(arguments)


def train_walled_in(arguments: list[str]) -> tuple[int, list[str]]:
    """The training program in a process that may reach its own machine alone; its exit code, and whom it asked for."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.pop(name, None)
    asked = wall_in()
    return train(arguments), asked


def reach_out_walled_in() -> tuple[int, list[str]]:
    """How often a process behind the wall is refused, and whom it asked for."""
    import socket

    asked, refused = wall_in(), 0
    for address in ("huggingface.co", "192.0.2.1"):
        try:
            socket.create_connection((address, 443), timeout=1)
        except OSError:
            refused += 1
    return refused, asked


def wall_in() -> list[str]:
    """Refuse to look up or connect to anything but this machine; returns the list that names what was asked for."""
    asked: list[str] = []
    here = {"localhost", "", os.uname().nodename}

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            address = arguments[1]
            name = address[0] if isinstance(address, tuple) else "localhost"
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            name = arguments[0] or ""
        else:
            return
        name = name.decode() if isinstance(name, bytes) else str(name)
        if name not in here and not name.startswith(("127.", "::1", "::ffff:127.")):
            asked.append(name)
            raise OSError(f"there is no way to {name}")

    sys.addaudithook(guard)
    return asked


def check(words: list[str], out: str) -> int:
    """`pretrain check`; what rank 0 prints goes to a file."""
    from launcher.probe.__main__ import main

    sys.argv = ["launcher.probe", *words]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        code = main()
    if told.getvalue():
        Path(out).write_text(told.getvalue())
    return code


def train_without_compiler(arguments: list[str], empty: str) -> tuple[int, str]:
    """`train_and_tell` on a machine without a compiler, where nothing has been compiled before.

    Args:
        arguments: Of the training program.
        empty: A folder to make: the only one on PATH, and where compiled operations would lie.
    """
    Path(empty).mkdir()
    os.environ.update(PATH=empty, TORCH_EXTENSIONS_DIR=empty)
    return train_and_tell(arguments)


def train_aloud(arguments: list[str]) -> tuple[int, str]:
    """The training program; returns its exit code and all that it wrote, to stdout and stderr."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        code = train(arguments)
    return code, told.getvalue()


def train_with_writes_refused(arguments: list[str], times: float, name: str) -> int:
    """The training program on a file system that refuses a file so many times; returns its exit code.

    Args:
        arguments: Of the program.
        times: How often.
        name: Of the file.
    """
    import errno

    from launcher.checkpoint import tensor_file

    plain, refused = tensor_file._open_new, 0

    def open_new(path: Path) -> int:
        nonlocal refused
        if path.name == name and refused < times:
            refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return plain(path)

    tensor_file._open_new = open_new
    return train(arguments)


def train_with_slow_copies(arguments: list[str]) -> int:
    """The training program where a copy of the state takes longer than the next gradients; returns its exit code."""
    import time

    from launcher.checkpoint import background

    plain = background.copy_bytes

    def copy_bytes(*tensors: Any) -> None:
        time.sleep(0.01)
        plain(*tensors)

    background.copy_bytes = copy_bytes
    return train(arguments)


def train_on_a_small_disk(arguments: list[str], free: int) -> tuple[int, str]:
    """The training program where only so many bytes are free; returns as `train_aloud`."""
    import shutil

    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12 - free, free)  # type: ignore[attr-defined]
    return train_aloud(arguments)


def load_cpu_adam(folder: str) -> list[str]:
    """Load DeepSpeed's CPU Adam, compiled into `folder` if need be; returns what was told on the way."""
    os.environ["TORCH_EXTENSIONS_DIR"] = folder
    from launcher.engine.compiled_ops import load_op

    told: list[str] = []
    load_op("cpu_adam", told.append)
    return told


def meet(variables: dict[int, dict[str, str]], patience_s: float) -> str:
    """Join the other ranks with some of the variables changed, by rank; returns what came of it."""
    from datetime import timedelta

    from launcher.cluster.rank import find_place
    from launcher.engine import process
    from launcher.errors import ClusterError

    process.RENDEZVOUS_TIMEOUT = timedelta(seconds=patience_s)
    os.environ.update(variables.get(int(os.environ["RANK"]), {}))
    try:
        process.join_ranks(find_place(os.environ), 1)
    except ClusterError as error:
        return str(error)
    except Exception as error:
        return f"waited: {type(error).__name__}"
    return "met"


def live_logits(arguments: list[str]) -> Any:
    """Train, then ask the engine's own model, before it is saved or exported; returns (inputs, logits)."""
    import torch

    from launcher.cluster.signals import StopSignals
    from launcher.engine.ledger import Ledger
    from launcher.engine.length import FixedLength
    from launcher.engine.watch import Watch
    from launcher.feed import validation_batches

    program = runpy.run_module("launcher.train", run_name="launcher_train")
    recipe, data, engine = begin(program, arguments)
    plan = recipe.cut_batch(engine.world_size)
    progress = program["Progress"](precision="fp32")
    program["keep_inputs"](recipe, {}, engine.global_rank)
    with StopSignals() as signals, Watch(recipe.guards, recipe.run_folder, engine.global_rank, signals) as watch:
        ledger = Ledger(None, engine.world_size)
        length = FixedLength(recipe.train.num_steps)
        console = program["Console"](quiet=True)
        program["take_steps"](recipe, engine, {}, data, plan, progress, length, watch, ledger, console)
    inputs = next(iter(validation_batches(recipe, data, 1, 0))).inputs
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items() if name != "labels"}
    engine.eval()
    with torch.no_grad():
        logits = engine(**tensors).logits
    return {name: array for name, array in inputs.items() if name != "labels"}, logits.numpy().copy()


def step_losses(arguments: list[str]) -> list[float]:
    """Train and keep nothing: the loss of every step."""
    return [result.loss for _, result in _steps(arguments)]


def train_and_save_as_deepspeed(arguments: list[str], save_after: int, folder: str) -> list[float]:
    """Train, and let DeepSpeed itself save after a step; the loss of every step."""
    from launcher.models.code_copies import remove_copies

    losses = []
    for engine, result in _steps(arguments):
        losses.append(result.loss)
        if result.step == save_after:
            engine.save_checkpoint(folder)
    remove_copies()  # of a model's own code; these processes end without `atexit`
    return losses


def _steps(arguments: list[str]) -> Iterator[tuple[Any, Any]]:
    """The engine, and what came of each step."""
    from launcher.cluster.signals import StopRequest
    from launcher.engine.guards import Guard
    from launcher.engine.length import FixedLength
    from launcher.engine.records import Health
    from launcher.engine.steps import train_steps
    from launcher.feed import step_batches

    program = runpy.run_module("launcher.train", run_name="launcher_train")
    recipe, data, engine = begin(program, arguments)
    plan = recipe.cut_batch(engine.world_size)
    batches = step_batches(data, plan, engine.global_rank, 0, recipe.train.num_steps)
    length = FixedLength(recipe.train.num_steps)
    with Guard(engine, recipe.guards, Health()) as guard:
        for result in train_steps(engine, batches, recipe, 1, length, guard, StopRequest()):
            yield engine, result


def make_universal(source: str, out: str) -> None:
    """DeepSpeed's own conversion."""
    from deepspeed.checkpoint import ds_to_universal

    sys.argv = ["ds_to_universal"]
    words = ["--input_folder", source, "--output_folder", out, "--inject_missing_state", "--num_extract_workers", "1"]
    sys.argv += [*words, "--num_merge_workers", "1"]
    ds_to_universal.main(ds_to_universal.parse_arguments())


def held(arguments: list[str]) -> tuple[list[int], dict[str, int], dict[str, int]]:
    """Train two steps: sizes of the parameters; bytes of the tensors before the second was taken, and after."""
    from dataclasses import asdict

    from launcher.cluster.signals import StopRequest
    from launcher.engine.guards import Guard
    from launcher.engine.held import held_bytes
    from launcher.engine.length import FixedLength
    from launcher.engine.records import Health
    from launcher.engine.steps import train_steps
    from launcher.feed import step_batches

    program = runpy.run_module("launcher.train", run_name="launcher_train")
    recipe, data, engine = begin(program, arguments)
    plan = recipe.cut_batch(engine.world_size)
    amid, step = [], engine.step

    def watched() -> None:
        amid.append(asdict(held_bytes(engine)))
        step()

    engine.step = watched
    batches = step_batches(data, plan, engine.global_rank, 0, 2)
    with Guard(engine, recipe.guards, Health()) as guard:
        for _ in train_steps(engine, batches, recipe, 1, FixedLength(recipe.train.num_steps), guard, StopRequest()):
            pass
    sizes = [getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters()]
    return sizes, amid[-1], asdict(held_bytes(engine))


def cut(arguments: list[str]) -> tuple[dict[str, Any], int]:
    """Start the engine: every weight as this rank has it, with where it is cut; and the most bytes that all had."""
    from deepspeed.module_inject.auto_tp import AutoTP

    from launcher.models.tensor_parallel import shard_of

    most, replace = [0], AutoTP._replace_with_config

    def watched(self: Any, child: Any, name: str) -> Any:
        new = replace(self, child, name)
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in self.module.parameters()}
        most[0] = max(most[0], sum(storages.values()))
        return new

    AutoTP._replace_with_config = watched
    _, _, engine = begin(runpy.run_module("launcher.train", run_name="launcher_train"), arguments)
    named = engine.module.named_parameters()
    return {name: (p.detach().float().numpy(), shard_of(p)) for name, p in named}, most[0]


def begin(program: dict[str, Any], arguments: list[str]) -> tuple[Any, Any, Any]:
    """Recipe, data and engine, as `train` makes them."""
    from launcher.engine.process import join_ranks

    options = program["parse"](arguments)
    recipe = program["load_recipe"](options.recipe, options.overrides).recipe
    place = program["find_place"](os.environ)
    plan = recipe.cut_batch(place.world_size)
    device = str(join_ranks(place, 1))
    data = program["open_data"](recipe)
    file = program["ds"].load_ds_config(options.ds_config)
    config = program["ds"].resolve_ds_config(file, recipe, plan, recipe.train.precision)
    program["prepare_offload"](config, place, program["Console"](quiet=True))
    model = program["build"](recipe, program["configure"](recipe, data), plan, config, device)
    return recipe, data, program["start"](recipe, model, config)


def export_and_count(run: str, out: str, shard_bytes: int) -> int:
    """Export; the most bytes of weights that were read from the checkpoint and held at one moment."""
    import weakref

    import torch

    from launcher.checkpoint.load import CheckpointReader
    from launcher.export import export_run

    held: dict[int, int] = {}
    most = 0
    plain = CheckpointReader.read_whole

    def read_whole(self: CheckpointReader, name: str, key: str = "master") -> torch.Tensor:
        nonlocal most
        tensor = plain(self, name, key)
        held[id(tensor)] = tensor.numel() * tensor.element_size()
        weakref.finalize(tensor, held.pop, id(tensor))
        most = max(most, sum(held.values()))
        return tensor

    CheckpointReader.read_whole = read_whole  # type: ignore[method-assign]
    export_run(Path(run), Path(out), shard_bytes=shard_bytes)
    return most


def exported_logits(folder: str, head: str, inputs: dict[str, Any]) -> Any:
    """What the exported folder answers to the same inputs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    auto = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}[head]
    model = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy().copy()


def plain_and_engine_losses(plain_recipe: str, arguments: list[str]) -> tuple[list[float], list[float]]:
    """The losses of `plain_losses` on a GPU, and of `step_losses`, which may be another recipe's."""
    return plain_losses(plain_recipe, "cuda"), step_losses(arguments)


def plain_losses(recipe_path: str, device: str = "cpu") -> list[float]:
    """The losses of `plain_run`."""
    losses: list[float] = plain_run(recipe_path, device)["losses"]
    return losses


def plain_run(recipe_path: str, device: str = "cpu") -> dict[str, Any]:
    """The same run without DeepSpeed: one process, dense logits, mean loss, torch's plain AdamW.

    With sentence pairs the loss is that of the model's own class, of tokens and pairs together.

    Returns:
        `losses` and gradient `norms` of the steps, the `weights` at the end, and the `validation` loss of them.
    """
    import torch

    from launcher.config.batch import plan_batch
    from launcher.config.loading import load_recipe
    from launcher.engine.schedule import learning_rate
    from launcher.feed import open_data, step_batches, validation_batches
    from launcher.models.build import build_model
    from launcher.models.configuration import build_config

    torch.set_num_threads(1)
    recipe = load_recipe(recipe_path).recipe
    data = open_data(recipe)
    head = recipe.objective.head
    config = build_config(recipe.model, head, data.tokenizer, recipe.data.seq_len)
    apart = recipe.data.keeps_documents_apart
    model = build_model(config, recipe.model, head, seed=recipe.train.seed, documents_apart=apart, device=device)
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=recipe.optim.betas,
        eps=recipe.optim.eps,
        fused=False,
        foreach=False,
    )
    losses, norms = [], []
    plan = plan_batch(recipe.batch.schedule, None, 1)
    for step, batch in enumerate(step_batches(data, plan, 0, 0, recipe.train.num_steps), start=1):
        whole = {name: np.concatenate([inputs[name] for inputs in batch.passes]) for name in batch.passes[0]}
        inputs = {name: torch.from_numpy(array).to(device) for name, array in whole.items()}
        labels = inputs.pop("labels")
        if "pair_labels" in inputs:
            name = {"next_sentence": "next_sentence_label", "sentence_order": "sentence_order_label"}[head]
            pair_labels = inputs.pop("pair_labels")
            loss = model(**inputs, labels=labels, **{name: pair_labels}).loss
        else:
            logits = model(**inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe.optim.lr, recipe.schedule, recipe.train.num_steps)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.grad_clip)))
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    sums = np.zeros(2)
    for held_out in validation_batches(recipe, data, 1, 0) if head == "causal" else ():
        inputs = {name: torch.from_numpy(array).to(device) for name, array in held_out.inputs.items()}
        labels = inputs.pop("labels").flatten()
        with torch.no_grad():
            scores = model(**inputs).logits.flatten(0, 1)
        sums += (torch.nn.functional.cross_entropy(scores, labels, reduction="sum").item(), int((labels >= 0).sum()))
    return {
        "losses": losses,
        "norms": norms,
        "weights": {name: values.detach().cpu().numpy().copy() for name, values in model.state_dict().items()},
        "validation": sums[0] / max(sums[1], 1),
    }


def drawn_weights(recipe_path: str) -> dict[str, Any]:
    """Parameter → its values before the first step, as numpy arrays."""
    from launcher.config.loading import load_recipe
    from launcher.feed import open_data
    from launcher.models.build import build_model
    from launcher.models.configuration import build_config

    recipe = load_recipe(recipe_path).recipe
    config = build_config(recipe.model, recipe.objective.head, open_data(recipe).tokenizer, recipe.data.seq_len)
    model = build_model(config, recipe.model, recipe.objective.head, seed=recipe.train.seed)
    return {name: parameter.detach().numpy().copy() for name, parameter in model.state_dict().items()}


def optimizer_values(arguments: list[str]) -> dict[str, int]:
    """How many values this rank's optimizer holds of each kind, and how many parameters there are and learn."""
    from launcher.checkpoint.slices import _masters, prime_state

    program = runpy.run_module("launcher.train", run_name="launcher_train")
    _, _, engine = begin(program, arguments)
    prime_state(engine)
    masters = _masters(engine)
    parameters = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in engine.module.parameters()]
    state = engine.basic_optimizer.state
    return {
        "master": sum(master.numel() for master in masters),
        "exp_avg": sum(state[master]["exp_avg"].numel() for master in masters),
        "exp_avg_sq": sum(state[master]["exp_avg_sq"].numel() for master in masters),
        "learning": sum(numel for numel, learns in parameters if learns),
        "total": sum(numel for numel, _ in parameters),
    }


def building_memory(precision: str) -> dict[str, int]:
    """Bytes this rank took at most while it built a model at stage 3, and what they are to be held against."""
    import ctypes

    from launcher.cluster import host_memory
    from launcher.cluster.rank import find_place
    from launcher.config.model import ModelConfig
    from launcher.engine.process import join_ranks
    from launcher.models.build import build_model
    from launcher.models.configuration import build_config

    # malloc keeps what was freed for later unless it is large: then nothing could be told from the process's memory.
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    place = find_place(os.environ)
    join_ranks(place, 1)
    batch = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 4 // place.world_size}
    ds_config: dict[str, Any] = {**batch, "zero_optimization": {"stage": 3}}
    if precision == "bf16":
        ds_config["bf16"] = {"enabled": True}
    for hidden_size, num_layers in ((64, 1), (512, 16)):  # a small one first: what is loaded and kept is not counted
        shape = {"hidden_size": hidden_size, "num_hidden_layers": num_layers, "intermediate_size": 4 * hidden_size}
        record = ModelConfig.model_validate({"family": "llama", "num_attention_heads": 8, **shape})
        config = build_config(record, "causal", tokenizer_info(), 16)
        host_memory.forget_peak()
        before = host_memory.resident_bytes()
        model = build_model(config, record, "causal", seed=1, ds_config=ds_config)
    peak = host_memory.peak_resident_bytes() - before
    layers = [[p for owner in (m, *m.children()) for p in owner.parameters(recurse=False)] for m in model.modules()]
    weight_bytes = next(model.parameters()).ds_tensor.element_size()
    return {
        "peak": peak,
        "partition": sum(p.ds_tensor.ds_numel for p in model.parameters()) * weight_bytes,
        "whole": sum(p.ds_numel for p in model.parameters()) * weight_bytes,
        "largest_layer": max(sum(p.ds_numel for p in layer) for layer in layers) * 4,
    }


def initial_weights(families: dict[str, tuple[str, dict[str, Any]]], stage: int, precision: str) -> Any:
    """Of each family: parameter and buffer → hash of its fp32 values, as the engine holds them before the first step.

    Args:
        families: Name → head and model.
        stage: Of ZeRO.
        precision: fp32 or bf16.
    """
    from launcher.cluster.rank import find_place
    from launcher.engine.process import join_ranks

    place = find_place(os.environ)
    join_ranks(place, 1)
    ds_config = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 4 // place.world_size,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
    }
    if precision == "bf16":
        ds_config["bf16"] = {"enabled": True}
    return {name: _initial_weights(head, model, ds_config) for name, (head, model) in families.items()}


def _initial_weights(head: str, model: dict[str, Any], ds_config: dict[str, Any]) -> dict[str, str]:
    import deepspeed

    from launcher.config.model import ModelConfig
    from launcher.config.recipe import OptimConfig
    from launcher.engine.start import start_engine
    from launcher.models.build import build_model
    from launcher.models.configuration import build_config

    record = ModelConfig.model_validate(model)
    config = build_config(record, head, tokenizer_info(), 16)
    built = build_model(config, record, head, seed=3, ds_config=ds_config)
    engine = start_engine(built, OptimConfig(lr=1e-3), ds_config)
    hashes = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            hashes[name] = hashlib.sha256(parameter.data.float().numpy().tobytes()).hexdigest()
    for name, buffer in engine.module.named_buffers():
        hashes[f"buffer {name}"] = hashlib.sha256(buffer.float().numpy().tobytes()).hexdigest()
    return hashes


def tokenizer_info() -> Any:
    """A tokenizer of 96 ids with every special token the objectives use."""
    from launcher.shards.manifest import SpecialTokens, TokenizerInfo

    sentinels = tuple(range(5, 15))
    special = SpecialTokens(
        pad=0,
        unk=1,
        cls=2,
        sep=3,
        mask=4,
        bos=None,
        eos=None,
        sentinels=sentinels,
        all_ids=tuple(range(15)),
        document_end=3,
    )
    return TokenizerInfo(sha256="0" * 64, vocab_size=96, name="tiny", special=special)


def weights_file(folder: str) -> str:
    """Hash of an exported model's weights."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def train_on_bad_data(arguments: list[str], kind: str, bad: list[int]) -> int:
    """The training program, where rank 1's part of some batches is bad, whichever step takes them.

    Args:
        arguments: Of the program.
        kind: `loss` or `gradient` for one that is no number, `spike` for a loss ten times as large.
        bad: First positions of the batches.
    """
    import torch

    import launcher.engine.steps as steps
    import launcher.loop as loop
    from launcher.samples.passed_over import moved_on

    is_bad = False
    sound_batches, sound_losses = loop.step_batches, steps.losses

    def batches(data: Any, plan: Any, rank: int, first: int, last: int, passed_over: Any) -> Any:
        nonlocal is_bad
        for step, batch in enumerate(sound_batches(data, plan, rank, first, last, passed_over), start=first):
            is_bad = rank == 1 and moved_on(plan.schedule.position_at(step), passed_over) in bad
            yield batch

    def losses(engine: Any, tensors: Any, z_loss: float = 0.0) -> Any:
        sums = sound_losses(engine, tensors, z_loss)
        if is_bad and torch.is_grad_enabled():
            if kind == "gradient":
                sums.register_hook(lambda gradient: gradient * float("nan"))
            else:
                sums = sums * {"loss": float("nan"), "spike": 10.0}[kind]
        return sums

    loop.step_batches, steps.losses = batches, losses
    return train(arguments)
