"""DeepSpeed's engine as the training program starts it, looked at or used from within; for `ranks.run_ranks`."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from typing import Any


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


def make_universal(source: str, out: str) -> None:
    """DeepSpeed's own conversion."""
    from deepspeed.checkpoint import ds_to_universal

    sys.argv = ["ds_to_universal"]
    words = ["--input_folder", source, "--output_folder", out, "--inject_missing_state", "--num_extract_workers", "1"]
    sys.argv += [*words, "--num_merge_workers", "1"]
    ds_to_universal.main(ds_to_universal.parse_arguments())


def live_logits(arguments: list[str]) -> Any:
    """Train, then ask the engine's own model, before it is saved or exported; returns (inputs, logits)."""
    import torch

    from launcher.cluster.signals import StopSignals
    from launcher.engine.ledger import Ledger
    from launcher.engine.length import FixedLength
    from launcher.engine.watch import Watch
    from launcher.feed.batches import validation_batches

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


def held(arguments: list[str]) -> tuple[list[int], dict[str, int], dict[str, int]]:
    """Train two steps: sizes of the parameters; bytes of the tensors before the second was taken, and after."""
    from dataclasses import asdict

    from launcher.cluster.signals import StopRequest
    from launcher.engine.guards import Guard
    from launcher.engine.held import held_bytes
    from launcher.engine.length import FixedLength
    from launcher.engine.records import Health
    from launcher.engine.steps import train_steps
    from launcher.feed.batches import step_batches

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


def _steps(arguments: list[str]) -> Iterator[tuple[Any, Any]]:
    """The engine, and what came of each step."""
    from launcher.cluster.signals import StopRequest
    from launcher.engine.guards import Guard
    from launcher.engine.length import FixedLength
    from launcher.engine.records import Health
    from launcher.engine.steps import train_steps
    from launcher.feed.batches import step_batches

    program = runpy.run_module("launcher.train", run_name="launcher_train")
    recipe, data, engine = begin(program, arguments)
    plan = recipe.cut_batch(engine.world_size)
    batches = step_batches(data, plan, engine.global_rank, 0, recipe.train.num_steps)
    length = FixedLength(recipe.train.num_steps)
    with Guard(engine, recipe.guards, Health()) as guard:
        for result in train_steps(engine, batches, recipe, 1, length, guard, StopRequest()):
            yield engine, result
