"""What the installed DeepSpeed reads of its configuration, asked of DeepSpeed itself.

Most of its blocks are read key by key from a dictionary, and what is not asked for is ignored: such a dictionary here
writes down what it is asked. The others are pydantic models, which know their fields.
"""

from __future__ import annotations

import enum
import types
import typing
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

Table = dict[str, Any]


class Asked(dict[str, Any]):
    """A dictionary that notes every key it is asked for, and the default that stands beside it."""

    def __init__(self, block: str, notes: dict[str, dict[str, Any]], /, **content: Any) -> None:
        super().__init__(**content)
        self._block, self._notes = block, notes

    def _note(self, key: str, default: Any = None) -> None:
        keys = self._notes.setdefault(self._block, {})
        keys[key] = keys.get(key) if default is None else default

    def __contains__(self, key: object) -> bool:
        self._note(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As ever."""
        self._note(key, default)
        return super().get(key, default)

    def keys(self) -> Any:
        """Itself: `key in keys()` is a question too."""
        return self

    def __copy__(self) -> Asked:
        return self


def read_table() -> Table:
    """The keys of every block, their types, bounds and defaults, and what became of removed ones."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime import config
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    notes: dict[str, dict[str, Any]] = {}

    def block(name: str, **content: Any) -> Asked:
        return Asked(name, notes, **content)

    asked = block(
        "",
        train_batch_size=1,
        optimizer=block("optimizer", type="AdamW", params={}),
        scheduler=block("scheduler", type="WarmupLR", params={}),
        torch_autocast=block("torch_autocast", enabled=True, dtype="bfloat16", lower_precision_safe_modules=[]),
        checkpoint=block("checkpoint", writer=block("checkpoint.writer")),
        **{name: block(name) for name in ("activation_checkpointing", "aio", "data_types", "flops_profiler")},
    )
    config.DeepSpeedConfig(asked)
    removed = dict(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    blocks = {name: {key: _asked(default) for key, default in keys.items()} for name, keys in notes.items()}
    top = {key: value for key, value in blocks.pop("").items() if key not in removed}
    # Asked outside of its configuration: deepspeed/__init__.py.
    top |= {key: {"type": "int"} for key in ("sequence_parallel_size", "data_parallel_size")}
    for name in ("managed_gradient_accumulation", "disable_python_gc"):
        assert name in top, "the configuration was not read as expected"
    models: dict[str, type[BaseModel]] = {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "comms_logger": CommsLoggerConfig,
        "compile": CompileConfig,
        "tensor_parallel": TPTrainingConfig,
        "hybrid_engine": config.HybridEngineConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "csv_monitor": CSVConfig,
        "comet": CometConfig,
    }
    for name, model in models.items():
        _add_model(blocks, name, model)
    for name in blocks:
        if "." not in name:
            top[name] = {"type": "object"}
    blocks[""] = top
    return {
        "deepspeed": version("deepspeed"),
        "blocks": {name: dict(sorted(keys.items())) for name, keys in sorted(blocks.items())},
        "removed": {
            "": {key: _sentence(text) for key, text in sorted(removed.items())},
            "zero_optimization": {
                key: _sentence(text) for key, text in sorted(config._REMOVED_ZERO_CONFIG_KEYS.items())
            },
        },
    }


def _asked(default: Any) -> Table:
    names = {bool: "bool", int: "int", float: "number", str: "string", dict: "object"}
    entry: Table = {"type": names.get(type(default), "any")}
    if isinstance(default, bool | int | float | str):
        entry["default"] = default
    return entry


def _add_model(blocks: dict[str, Table], name: str, model: type[BaseModel]) -> None:
    keys = blocks.setdefault(name, {})
    for field, info in model.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        entry = _type(info.annotation)
        entry |= {bound: getattr(mark, bound) for mark in info.metadata for bound in ("ge", "gt", "le", "lt")
                  if hasattr(mark, bound)}  # fmt: skip
        default = info.get_default(call_default_factory=False)
        if isinstance(default, bool | int | float | str):
            entry["default"] = _plain(default)
        if extra.get("deprecated"):
            entry["deprecated"] = extra.get("new_param", "")
        nested = entry.pop("model", None)
        for key in {field, info.alias or field}:
            keys[key] = dict(entry)
            if nested is not None:
                _add_model(blocks, f"{name}.{key}", nested)


def _type(annotation: Any) -> Table:
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    kinds = [kind for kind in options or (annotation,) if kind is not type(None)]
    entry: Table = {"type": "any"}
    if len(kinds) == 1 and isinstance(kinds[0], type):
        (kind,) = kinds
        if issubclass(kind, BaseModel):
            entry = {"type": "object", "model": kind}
        elif issubclass(kind, enum.Enum):
            entry = {"type": "one of", "values": [member.value for member in kind]}
        else:
            names = {bool: "bool", int: "int", float: "number", str: "string"}
            entry = {"type": next((name for known, name in names.items() if issubclass(kind, known)), "any")}
    if type(None) in options:
        entry["null"] = True
    return entry


def _plain(default: Any) -> Any:
    if isinstance(default, enum.Enum):
        return default.value
    return (
        default if isinstance(default, bool | str) else float(default) if isinstance(default, float) else int(default)
    )


def _sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].rstrip(".")
