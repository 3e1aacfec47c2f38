"""Models before their first step: the weights they begin with, and what building them takes; for `ranks.run_ranks`."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import tiny


def drawn_weights(recipe_path: str) -> dict[str, Any]:
    """Parameter → its values before the first step, as numpy arrays."""
    from launcher.config.loading import load_recipe
    from launcher.feed.data import open_data
    from launcher.models.build import build_model
    from launcher.models.configuration import build_config

    recipe = load_recipe(recipe_path).recipe
    config = build_config(recipe.model, recipe.objective.head, open_data(recipe).tokenizer, recipe.data.seq_len)
    model = build_model(config, recipe.model, recipe.objective.head, seed=recipe.train.seed)
    return {name: parameter.detach().numpy().copy() for name, parameter in model.state_dict().items()}


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
        config = build_config(record, "causal", tiny.tokenizer_info(), 16)
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
    config = build_config(record, head, tiny.tokenizer_info(), 16)
    built = build_model(config, record, head, seed=3, ds_config=ds_config)
    engine = start_engine(built, OptimConfig(lr=1e-3), ds_config)
    hashes = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            hashes[name] = hashlib.sha256(parameter.data.float().numpy().tobytes()).hexdigest()
    for name, buffer in engine.module.named_buffers():
        hashes[f"buffer {name}"] = hashlib.sha256(buffer.float().numpy().tobytes()).hexdigest()
    return hashes
