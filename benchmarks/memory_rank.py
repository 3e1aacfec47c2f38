"""What one rank of `benchmarks.memory` does: an engine as the launcher starts it, or the loop without DeepSpeed."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import time
from argparse import Namespace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from benchmarks.memory import SEED, SEQ_LEN, VOCABULARY
from launcher.cluster import host_memory
from launcher.cluster.rank import find_place
from launcher.cluster.signals import StopRequest
from launcher.config import deepspeed as ds
from launcher.config.batch import plan_batch
from launcher.config.loading import check_recipe
from launcher.engine.compiled_ops import load_op
from launcher.engine.guards import Guard
from launcher.engine.held import held_bytes
from launcher.engine.length import FixedLength
from launcher.engine.process import join_ranks
from launcher.engine.records import Health, StepBatch
from launcher.engine.start import start_engine
from launcher.engine.steps import train_steps
from launcher.engine.swap_files import clear_swap_files, prepare_swap_files
from launcher.models.build import build_model, count_parameters
from launcher.plan.memory import REDUCE_BUCKET, state_bytes
from launcher.units import StateBytes

M_MMAP_THRESHOLD = -3
"""Of mallopt(3)."""
PERSISTENT = 100_000
"""`stage3_param_persistence_threshold` where the configuration names none."""


class BareLoop:
    """DistributedDataParallel and torch's fused AdamW."""

    def __init__(self, options: Namespace) -> None:
        join(options)
        precision = torch.bfloat16 if options.precision == "bf16" else torch.float32
        model = build_model(model_config(options), recipe_of(options).model, "causal", seed=SEED).to(precision)
        self.model = torch.nn.parallel.DistributedDataParallel(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.inputs = {name: torch.from_numpy(array) for name, array in one_pass(options).items()}
        self.told = {"num_parameters": count_parameters(model)}

    def steps(self, number: int) -> tuple[float, float]:
        """Take some; seconds, and those that the cores worked."""
        started, worked = time.perf_counter(), time.process_time()
        for _ in range(number):
            logits = self.model(input_ids=self.inputs["input_ids"], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), self.inputs["labels"].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.perf_counter() - started, time.process_time() - worked

    def end(self) -> None:
        """There is nothing to leave."""

    def memory(self) -> dict[str, int]:
        """There is no formula to hold it against."""
        return {}


class Engine:
    """A configuration's engine."""

    def __init__(self, file: dict[str, Any], options: Namespace) -> None:
        join(options)
        self.before = host_memory.resident_bytes()
        self.recipe, self.options = recipe_of(options), options
        plan = plan_batch(options.micro_batch * options.ranks, options.micro_batch, options.ranks)
        self.config = ds.resolve_ds_config(file, self.recipe, plan, options.precision)
        if ds.swap_folders(self.config):
            prepare_swap_files(self.config, find_place(os.environ))
            load_op("async_io")
        stage = ds.zero_stage(file)
        built: list[Any] = []

        def build(shape: Namespace = options) -> None:
            config = model_config(shape)
            built[:] = [build_model(config, self.recipe.model, "causal", seed=SEED, ds_config=self.config)]

        watched = stage == 3 and not options.rounds
        if watched:
            build(Namespace(hidden=64, layers=1))  # what is loaded and kept for all models is not counted
        host_memory.forget_peak()
        before = host_memory.resident_bytes()
        build()
        (model,) = built
        self.told: dict[str, int] = {"num_parameters": count_parameters(model)}
        if watched:
            self.told |= {"build_peak": host_memory.peak_resident_bytes() - before, **partition_and_layer(model)}
        self.engine = start_engine(model, self.recipe.optim, self.config)
        inputs = one_pass(options)
        num_tokens = inputs["labels"].size
        self.batch = StepBatch(passes=[inputs], num_targets=num_tokens, num_tokens=num_tokens, digest=0)

    def steps(self, number: int) -> tuple[float, float]:
        """Take some; seconds, and those that the cores worked."""
        started, worked = time.perf_counter(), time.process_time()
        with Guard(self.engine, self.recipe.guards, Health()) as guard:
            length = FixedLength(self.recipe.train.num_steps)
            batches = [self.batch] * number
            for _ in train_steps(self.engine, batches, self.recipe, 1, length, guard, StopRequest()):
                pass
        return time.perf_counter() - started, time.process_time() - worked

    def end(self) -> None:
        """Leave nothing on a drive."""
        clear_swap_files(self.config, find_place(os.environ))

    def memory(self) -> dict[str, int]:
        """What lies there before the optimizer steps, and between steps."""
        held: list[StateBytes] = []
        step = self.engine.step
        self.steps(1)  # what is made once is made now
        host_memory.forget_peak()

        def held_step() -> None:
            held.append(held_bytes(self.engine))
            step()

        self.engine.step = held_step
        self.steps(1)
        self.engine.step = step
        between = held_bytes(self.engine)
        rss_between, rss_peak = host_memory.resident_bytes(), host_memory.peak_resident_bytes()
        return {
            **dataclasses.asdict(held[0]),
            "total": held[0].total,
            "formula": self.formula(),
            "optimizer_between": between.optimizer,
            "groups": len(steps_of(self.engine)),
            "rss_between": rss_between - self.before,
            "rss_peak": rss_peak - self.before,
        }

    def formula(self) -> int:
        """What the plan says; 0 where the optimizer lies elsewhere."""
        zero = self.config["zero_optimization"]
        if zero.get("offload_optimizer") or zero.get("offload_param"):
            return 0
        threshold = int(zero.get("stage3_param_persistence_threshold", PERSISTENT))
        sizes = [getattr(p, "ds_numel", p.numel()) for p in self.engine.module.parameters()]
        return state_bytes(
            sum(sizes),
            stage=zero["stage"],
            world_size=self.options.ranks,
            weight_bytes=2 if self.options.precision == "bf16" else 4,
            persistent_parameters=sum(size for size in sizes if size < threshold),
            reduce_bucket=int(zero.get("reduce_bucket_size", REDUCE_BUCKET)),
        ).total


def steps_of(engine: Any) -> list[Any]:
    """What the optimizer steps one after another."""
    groups = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)  # of stage 3, where `sub_group_size` cuts
    return list(engine.basic_optimizer.param_groups if groups is None else groups)


def partition_and_layer(model: Any) -> dict[str, int]:
    """Bytes of this rank's part of a partitioned model, and of the largest layer, whole and in fp32."""
    partition = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in model.parameters())
    layers = [
        sum(p.ds_numel for owner in (module, *module.children()) for p in owner.parameters(recurse=False))
        for module in model.modules()
    ]
    return {"partition": partition, "largest_layer": 4 * max(layers)}


def join(options: Namespace) -> None:
    """Join the others, with this rank's part of the cores.

    Where nothing is timed, what is freed of 64 KiB and more goes back to the system at once, so that the process's
    memory tells its tensors. torch's own record does not: of a tensor that was sent, the end falls into a thread of
    gloo's, which it does not see (seen: 38 MiB of a model of 107M parameters that never ended).
    """
    if not options.rounds:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    join_ranks(find_place(os.environ), max(len(os.sched_getaffinity(0)) // options.ranks, 1))


def model_config(options: Namespace) -> LlamaConfig:
    """A Llama."""
    return LlamaConfig(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
        vocab_size=VOCABULARY,
        max_position_embeddings=SEQ_LEN,
    )


def recipe_of(options: Namespace) -> Any:
    """What the engine needs of a run."""
    return check_recipe(
        {
            "name": "memory",
            "data": {"shards": ".", "seq_len": SEQ_LEN},
            "objective": {"kind": "clm"},
            "model": {"family": "llama", "chunked_loss": "off"},
            "batch": {"global_batch": options.micro_batch * options.ranks},
            "optim": {"lr": 1e-4},
            "train": {"num_steps": 1_000_000, "precision": options.precision},
        },
        "benchmarks.memory",
    )


def one_pass(options: Namespace) -> dict[str, Any]:
    """Tokens drawn at random."""
    rng = np.random.default_rng(SEED)
    shape = (options.micro_batch, SEQ_LEN)
    return {name: rng.integers(0, VOCABULARY, shape, dtype=np.int64) for name in ("input_ids", "labels")}
