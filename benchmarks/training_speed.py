"""Training on one GPU: the engine with its options beside a plain PyTorch loop and transformers' Trainer, over the same
model and batches.

    python -m benchmarks.training_speed [--hidden 1024] [--layers 24] [--seq-len 2048] [--rows 16] [--steps 20]
        [--only NAME …] [--json]

A Llama shape over random ids of a vocabulary of 50,000, in bf16 (plain loop and Trainer in autocast, with torch's fused
AdamW), every row several documents. Each side runs in a process of its own, started anew; tokens per second are the
median over the steps after the first five, in which kernels are chosen and compiled. On a CPU, give small numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.made_shards import make_shards
from benchmarks.rounds import ROOT, Value
from benchmarks.support import parser, show

CHILD = "--child"
WARM_UP = 5
APART = {"packing": "bestfit", "documents": "apart"}
SIDES: dict[str, dict[str, Any]] = {
    "plain loop": {"config": "zero0", "precision": "bf16_autocast", "loop": "plain"},
    "Trainer": {"config": "zero0", "precision": "bf16_autocast", "loop": "trainer"},
    "zero0": {"config": "zero0", "precision": "bf16"},
    "zero2": {"config": "zero2", "precision": "bf16"},
    "zero3": {"config": "zero3", "precision": "bf16"},
    "zero2 compiled": {"config": "zero2", "precision": "bf16", "model": {"compile": True}},
    "zero2 liger": {"config": "zero2", "precision": "bf16", "model": {"liger": True}},
    "zero2 recomputed": {"config": "zero2", "precision": "bf16", "model": {"activation_checkpointing": True}},
    "zero2 apart, sdpa": {"config": "zero2", "precision": "bf16", "data": APART},
    "zero2 apart, flex": {
        "config": "zero2",
        "precision": "bf16",
        "data": APART,
        "model": {"attention": "flex_attention"},
    },
    "zero2 apart, flash": {
        "config": "zero2",
        "precision": "bf16",
        "data": APART,
        "model": {"attention": "flash_attention_2"},
    },
}
"""What is measured: the ZeRO configuration, and what of the recipe is changed."""


def main() -> None:
    """Measure and print."""
    if CHILD in sys.argv:
        print(json.dumps(measure(json.loads(sys.argv[-1]))))
        return
    made = parser(__doc__, rounds=1)
    for name, default in (("hidden", 1024), ("layers", 24), ("seq-len", 2048), ("rows", 16), ("steps", 20)):
        made.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    made.add_argument("--only", nargs="+", choices=SIDES, metavar="NAME", help=f"of: {', '.join(SIDES)}")
    options = made.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        documents = 2 * options.rows * options.steps
        make_shards(shards, documents, options.seq_len)
        for name in options.only or SIDES:
            recipe = recipe_of(SIDES[name], options, shards)
            results += list(told(name, {**SIDES[name], "recipe": recipe}))
    settings = {name: getattr(options, name) for name in ("hidden", "layers", "seq_len", "rows", "steps")}
    show("training_speed", results, as_json=options.json, packages=("torch", "deepspeed"), settings=settings)


def recipe_of(side: dict[str, Any], options: Any, shards: Path) -> dict[str, Any]:
    """The whole recipe of one side."""
    return {
        "name": "speed",
        "data": {"shards": str(shards), "seq_len": options.seq_len, **side.get("data", {})},
        "objective": {"kind": "clm"},
        "model": {
            "family": "llama",
            "hidden_size": options.hidden,
            "num_hidden_layers": options.layers,
            "num_attention_heads": max(1, options.hidden // 64),
            "intermediate_size": options.hidden * 8 // 3 // 64 * 64,
            "max_position_embeddings": options.seq_len,
            **side.get("model", {}),
        },
        "batch": {"global_batch": options.rows},
        "optim": {"lr": 3e-4},
        "train": {"num_steps": options.steps, "precision": side["precision"]},
    }


def told(name: str, side: dict[str, Any]) -> Iterator[Value]:
    """One side in a fresh process; a side that cannot run here says why on stderr."""
    command = [sys.executable, "-m", "benchmarks.training_speed", CHILD, json.dumps(side)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{name}: left out: {done.stderr.strip()[-400:]}", file=sys.stderr)
        return
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {found}", file=sys.stderr, flush=True)  # a run that is ended early has told of the sides before
    yield Value(f"{name}: tokens a second", found["tokens_per_s"], "")
    if found["mfu"]:
        yield Value(f"{name}: share of the device's peak", found["mfu"], "")
    yield Value(f"{name}: peak memory of the device", found["peak_gib"], "GiB")
    yield Value(f"{name}: loss of the last step", found["loss"], "nats")


def measure(side: dict[str, Any]) -> dict[str, Any]:
    """Train and time."""
    import torch

    from launcher.cluster.rank import find_place, with_master
    from launcher.config.batch import plan_batch
    from launcher.config.deepspeed import load_ds_config, resolve_ds_config
    from launcher.config.loading import check_recipe
    from launcher.engine.process import device_model, join_ranks
    from launcher.feed.batches import step_batches
    from launcher.feed.data import open_data
    from launcher.models.build import build_model, parameters_per_token
    from launcher.models.configuration import build_config
    from launcher.objectives.base import longest_sequence
    from launcher.plan.flops import flops_per_token, peak_flops

    recipe = check_recipe(side["recipe"], "benchmark")
    plan = plan_batch(recipe.batch.schedule, None, 1)
    if side.get("loop") == "trainer":  # joined to others, even to none, it would wrap the model in DDP
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = join_ranks(with_master(find_place(os.environ)), len(os.sched_getaffinity(0)))
    data = open_data(recipe)
    ds_config = resolve_ds_config(load_ds_config(side["config"]), recipe, plan, side["precision"])
    config = build_config(recipe.model, "causal", data.tokenizer, longest_sequence(data.objective))
    model = build_model(
        config,
        recipe.model,
        "causal",
        seed=0,
        documents_apart=recipe.data.keeps_documents_apart,
        micro_batch_tokens=0 if "loop" in side else side["recipe"]["batch"]["global_batch"] * recipe.data.seq_len,
        ds_config=ds_config,
        device=str(device),
    )
    flops = flops_per_token(
        parameters_per_token(model), config.num_hidden_layers, config.hidden_size, recipe.data.seq_len
    )
    batches = step_batches(data, plan, 0, 0, recipe.train.num_steps)
    run = {"plain": plain_steps, "trainer": trainer_steps}.get(side.get("loop", ""), engine_steps)
    steps = list(run(model, batches, recipe, ds_config))[WARM_UP:]
    tokens_per_s = statistics.median(tokens / took for took, tokens, _ in steps)
    peak = peak_flops(device_model())
    return {
        "tokens_per_s": tokens_per_s,
        "mfu": tokens_per_s * flops / peak if peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
        "loss": steps[-1][2],
    }


def engine_steps(
    model: Any, batches: Any, recipe: Any, ds_config: dict[str, Any]
) -> Iterator[tuple[float, int, float]]:
    """Seconds, tokens and loss of each step, as a run takes them."""
    from launcher.cluster.signals import StopRequest
    from launcher.engine.guards import Guard
    from launcher.engine.length import FixedLength
    from launcher.engine.records import Health
    from launcher.engine.start import start_engine
    from launcher.engine.steps import train_steps

    engine = start_engine(model, recipe.optim, ds_config)
    if recipe.model.compile:
        engine.compile()
    length = FixedLength(recipe.train.num_steps)
    with Guard(engine, recipe.guards, Health()) as guard:
        for result in train_steps(engine, batches, recipe, 1, length, guard, StopRequest()):
            yield result.step_s, result.step_tokens, result.loss


def plain_steps(model: Any, batches: Any, recipe: Any, ds_config: dict[str, Any]) -> Iterator[tuple[float, int, float]]:
    """The same with nothing but PyTorch."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.optim.lr, fused=True)
    for batch in batches:
        started = time.perf_counter()
        (arrays,) = batch.passes
        tensors = {name: torch.from_numpy(array).to(model.device) for name, array in arrays.items()}
        labels = tensors.pop("labels")
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(**tensors, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        told = loss.item()
        yield time.perf_counter() - started, batch.num_tokens, told


def trainer_steps(
    model: Any, batches: Any, recipe: Any, ds_config: dict[str, Any]
) -> Iterator[tuple[float, int, float]]:
    """The same as transformers' Trainer takes them; the loss is that of all tokens but a row's first."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        """When each step began and ended, the device's work done."""

        def __init__(self) -> None:
            self.steps: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.steps.append(time.perf_counter() - self._began)

    whole = list(batches)
    rows = [torch.from_numpy(row) for batch in whole for row in batch.passes[0]["input_ids"]]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(whole[0].passes[0]["input_ids"]),
            max_steps=recipe.train.num_steps,
            learning_rate=recipe.optim.lr,
            max_grad_norm=recipe.optim.grad_clip,
            optim="adamw_torch_fused",
            bf16=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
        trainer.add_callback(clock)
        with contextlib.redirect_stdout(sys.stderr):  # its log; what is told goes to stdout
            trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    for batch, took, loss in zip(whole, clock.steps, losses, strict=True):
        yield took, batch.num_tokens, loss


if __name__ == "__main__":
    main()
