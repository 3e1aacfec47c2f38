"""`pretrain ds-config`: build a DeepSpeed JSON, change one, or check one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from launcher.config.compiled_ops import USES, missing_packages, needed_ops
from launcher.config.deepspeed import find_ds_config, read_ds_config
from launcher.config.deepspeed_build import as_json, build_ds_config
from launcher.config.deepspeed_check import check_ds_config
from launcher.config.deepspeed_choices import DsChoices, Setting
from launcher.config.deepspeed_keys import keys_of
from launcher.config.deepspeed_offload import NVME_GROUP
from launcher.errors import DsConfigError

OFF = ("none", "cpu", "nvme")
ELSEWHERE = {
    "--activation-checkpointing": (
        "transformers' models recompute activations by themselves: DeepSpeed's block is for models that call it",
        "set model.activation_checkpointing in the recipe",
    ),
    "--checkpoint-engine": (
        "checkpoints are the launcher's own, so that DeepSpeed's engines have nothing to write",
        "see checkpoint in the recipe (pretrain recipe NAME --explain)",
    ),
}
"""Choices that are not made here: why, and where they are."""


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of the command; those of a file to build are the fields of `DsChoices`."""
    command.add_argument("--check", metavar="FILE", help="check this file, or one of ds_configs/, and build nothing")
    command.add_argument("--from", dest="base", metavar="FILE", help="change this file: what is not asked for stays")
    command.add_argument("--out", type=Path, metavar="FILE", help="write it here; without it, to the terminal")
    command.add_argument("--overwrite", action="store_true", help="replace --out where it is there")
    command.add_argument("--explain", action="store_true", help="each key with its meaning, origin and memory")
    command.add_argument("--json", action="store_true", help="for --check and --explain: one JSON object")
    command.add_argument("--device-memory-gb", type=float, metavar="GB", help="of one accelerator: do the buffers fit?")
    built = command.add_argument_group("what to build")
    built.add_argument("--stage", type=int, choices=range(4))
    built.add_argument("--offload-optimizer", choices=OFF)
    built.add_argument("--offload-param", choices=OFF)
    built.add_argument("--parameters", dest="num_parameters", type=_number, metavar="N", help="of the model: 110M, 7B")
    built.add_argument("--ranks", dest="num_ranks", type=_number, metavar="N", help="that share it: sizes the groups")
    built.add_argument("--bucket-size", type=_number, metavar="N", help="values sent at once: 50M")
    built.add_argument("--overlap-comm", action=argparse.BooleanOptionalAction)
    built.add_argument("--pin-memory", action=argparse.BooleanOptionalAction)
    built.add_argument("--sub-group-size", type=_number, metavar="N", help="parameters the optimizer steps at once")
    built.add_argument("--hpz", type=_number, metavar="RANKS", help="ranks of a node that hold all weights once more")
    built.add_argument("--quantized-weights", action="store_true", default=None, help="ZeRO++: gathered in 8 bits")
    built.add_argument("--quantized-gradients", action="store_true", default=None, help="ZeRO++: reduced in 4 bits")
    nvme = command.add_argument_group("offload to NVMe (libaio)")
    nvme.add_argument("--nvme-path", metavar="FOLDER", help="on a drive of the node itself")
    nvme.add_argument("--aio-block-size", type=_number, metavar="BYTES", help="of one request to the drive")
    nvme.add_argument("--aio-queue-depth", type=_number, metavar="N", help="requests on their way at once")
    nvme.add_argument("--aio-threads", type=_number, metavar="N", help="that read or write one tensor")
    own = command.add_argument_group("what the recipe decides (written where asked for; the recipe must agree)")
    own.add_argument("--precision", choices=("fp32", "bf16", "fp16", "bf16_autocast"))
    own.add_argument("--global-batch", type=_number, metavar="SAMPLES")
    own.add_argument("--micro-batch", type=_number, metavar="SAMPLES")
    own.add_argument("--grad-accum-steps", type=_number, metavar="PASSES")
    own.add_argument("--grad-clip", type=float, metavar="NORM")
    for option, (_, where) in ELSEWHERE.items():
        own.add_argument(option, nargs="?", const="", metavar="…", help=f"not here: {where}")


def run(options: argparse.Namespace) -> None:
    """Build, change or check.

    Raises:
        DsConfigError: The file or the choices cannot be.
    """
    for option, (why, where) in ELSEWHERE.items():
        if getattr(options, option[2:].replace("-", "_")) is not None:
            raise DsConfigError(why, option, where)
    device_bytes = None if options.device_memory_gb is None else int(options.device_memory_gb * 1e9)
    given = {name: getattr(options, name) for name in DsChoices.model_fields if getattr(options, name) is not None}
    if options.check is not None:
        if given or options.base is not None or options.out is not None:
            raise DsConfigError("--check builds nothing", "--check", "give it alone")
        _check(options, device_bytes)
        return
    base = {} if options.base is None else read_ds_config(find_ds_config(options.base))
    strange = _strange(base)
    check_ds_config({key: value for key, value in base.items() if key not in strange}, str(options.base))
    if base:
        base = _without_replaced(base, given)
        given = {**_chosen_before(base), **given}
    settings = build_ds_config(DsChoices.model_validate(given))
    changed = settings
    if base:  # only what was asked for changes; the rest of the file is the user's
        changed = [setting for setting in settings if setting.origin != "default"]
    config = as_json(changed, base)
    known = {key: value for key, value in config.items() if key not in strange}
    warnings = check_ds_config(known, options.base or "the choices", device_bytes=device_bytes)
    warnings += [f"unknown key {key!r} of {options.base} is kept: DeepSpeed ignores it" for key in strange]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.explain:
        explained = _of_file(config, settings, base, options.base) if base else settings
        _explain(explained, as_object=options.json)
    if options.out is not None:
        _write(config, options.out, overwrite=options.overwrite)
        print(f"written: {options.out}", file=sys.stderr)
    elif not options.explain:
        print(json.dumps(config, indent=2))


def _of_file(config: dict[str, Any], settings: list[Setting], base: dict[str, Any], file: str) -> list[Setting]:
    """Every key of a changed file: those the builder knows with their meaning, and where each value is from."""
    known, before = {setting.key: setting for setting in settings}, dict(_leaves(base))
    told = []
    for key, value in _leaves(config):
        setting = known.get(key)
        if setting is None:
            text = "no choice of the builder's: see DeepSpeed's documentation"
            told.append(Setting(key=key, value=value, origin="file", why=file, meaning=text, memory="not known here"))
        elif before.get(key) == value:
            told.append(replace(setting, value=value, origin="file", why=file))
        else:
            told.append(setting)
    return told


def _leaves(block: dict[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in block.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{outer}{name}.")
        else:
            yield f"{outer}{name}", value


def _without_replaced(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A file without what belonged to a device that another one, or none, takes the place of."""
    zero = dict(base.get("zero_optimization", {}))
    for name in ("offload_optimizer", "offload_param"):
        if name in given and (zero.get(name) or {}).get("device", "none") != given[name]:
            zero.pop(name, None)
    nvme = [name for name in ("offload_optimizer", "offload_param") if (zero.get(name) or {}).get("device") == "nvme"]
    was_on_nvme = (base.get("zero_optimization", {}).get("offload_optimizer") or {}).get("device") == "nvme"
    if was_on_nvme and "offload_optimizer" not in nvme and zero.get("sub_group_size") == NVME_GROUP:
        del zero["sub_group_size"]
    kept = {key: value for key, value in base.items() if key != "aio" or nvme}
    return {**kept, "zero_optimization": zero} if "zero_optimization" in base else kept


def _chosen_before(base: dict[str, Any]) -> dict[str, Any]:
    """What a file chose that other choices build upon."""
    zero = base.get("zero_optimization", {})
    chosen = {"stage": zero.get("stage", 0)}
    for name in ("offload_optimizer", "offload_param"):
        block = zero.get(name) or {}
        chosen[name] = block.get("device", "none")
        if "nvme_path" in block:
            chosen["nvme_path"] = block["nvme_path"]
    return chosen


def _check(options: argparse.Namespace, device_bytes: int | None) -> None:
    path = find_ds_config(options.check)
    config = read_ds_config(path)
    warnings = [*check_ds_config(config, str(path), device_bytes=device_bytes), *_lacking(config)]
    if options.json:
        print(json.dumps({"file": str(path), "sound": True, "warnings": warnings}))
        return
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path}: sound")


def _lacking(config: dict[str, Any]) -> list[str]:
    """What a run with this file would miss on this machine; those it is for may have it."""
    lacking = [(op, missing_packages(op)) for op in needed_ops(config, "auto")]
    return [
        f"this machine cannot compile DeepSpeed's {op} ({USES[op]}): apt-get install {' '.join(missing)}"
        for op, missing in lacking
        if missing
    ]


def _strange(config: dict[str, Any]) -> list[str]:
    return [key for key in config if key not in keys_of("")]


def _explain(settings: list[Setting], *, as_object: bool) -> None:
    if as_object:
        print(json.dumps({"settings": [asdict(setting) for setting in settings]}, ensure_ascii=False))
        return
    for setting in settings:
        print(f"{setting.key} = {json.dumps(setting.value)}")
        print(f"    meaning  {setting.meaning}")
        print(f"    origin   {setting.origin}: {setting.why}")
        print(f"    memory   {setting.memory}")


def _write(config: dict[str, Any], path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise DsConfigError("the file is there already", str(path), "choose another --out, or add --overwrite")
    if not path.parent.is_dir():
        raise DsConfigError("there is no such folder", str(path.parent), "make it, or choose another --out")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _number(text: str) -> int:
    factors = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
    factor = factors.get(text[-1:].lower(), 1)
    try:
        value = round(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number; write 50000000, 50M or 7B") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1")
    return value
