"""DeepSpeed's own checkpoints, read without running what is in them.

They are pickles. `torch.load(weights_only=True)` builds tensors and plain values only; the four classes of DeepSpeed's
that stand in them are allowed by name and become inert stand-ins, so that none of DeepSpeed's code runs either. What
names anything else is refused.

    TAG/mp_rank_00_model_states.pt                       module, buffer names, steps (stages 1 and 2)
    TAG/zero_pp_rank_R_mp_rank_00_model_states.pt        the same, of each rank (stage 3)
    TAG/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt masters and moments in flat groups
    TAG_universal/zero/NAME/{fp32,exp_avg,exp_avg_sq}.pt one tensor each (ds_to_universal)
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.checkpoint.slices import MASTER
from launcher.errors import CheckpointError
from launcher.shards import faults

MOMENTS = ("exp_avg", "exp_avg_sq")
KEYS = (MASTER, *MOMENTS)


class Inert:
    """Stands for a class of DeepSpeed's: the pickled fields, and no code."""


ALLOWED: tuple[tuple[Callable[..., Any], str], ...] = (
    (Inert, "deepspeed.utils.tensor_fragment.fragment_address"),
    (Inert, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (Inert, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
)
_OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_FOREIGN = {
    r".*expert_\d+.*": "it was saved with expert parallelism",
    r".*mp_rank_(?!00).*": "it was saved with tensor parallelism",
    r"layer_\d+.*": "it was saved by a pipeline",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far DeepSpeed's run had come."""

    step: int
    """Optimizer steps, skipped ones included."""
    optimizer_step: int
    """Steps AdamW has taken."""
    loss_scale: dict[str, float]
    """The fields of a dynamic loss scale; empty without one."""


class DeepSpeedCheckpoint:
    """One checkpoint, its tensors memory-mapped.

    Args:
        folder: `…/global_stepN`, `…/global_stepN_universal`, or the folder above, whose `latest` names one.

    Raises:
        CheckpointError: It is none, lacks a part, holds what is not allowed, or was saved with parallelism that is not
            read here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = _tag(folder)
        _refuse_foreign(self.folder)
        self._universal = self.folder / "zero"
        self._model = _load(_first(self.folder, "*model_states.pt"))
        files = {int(m[1]): path for path in self.folder.iterdir() if (m := _OPTIMIZER_FILE.fullmatch(path.name))}
        self._ranks = [] if self._universal.is_dir() else self._load_ranks(files)
        if not self._universal.is_dir() and not self._ranks:
            raise CheckpointError(
                "it holds no partitioned optimizer state: at stage 0 DeepSpeed does not tell which moments belong to "
                "which parameter",
                str(self.folder),
                "take the weights alone: save them as a transformers folder, and set model.continue_from",
            )

    @property
    def progress(self) -> Progress:
        """How far it had come."""
        step = int(self._model["global_steps"])
        scaler = vars(self._ranks[0].get("loss_scaler")) if self._ranks and self._ranks[0].get("loss_scaler") else {}
        fields = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
        dynamic = all(field in scaler for field in fields)
        return Progress(
            step=step,
            optimizer_step=step - int(self._model.get("skipped_steps") or 0),
            loss_scale={field: scaler[field] for field in fields} if dynamic else {},
        )

    @property
    def precision(self) -> str:
        """What the model computed in."""
        config = self._model.get("ds_config") or {}
        named = (name for name in ("bf16", "fp16") if (config.get(name) or {}).get("enabled"))
        return next(named, "bf16_autocast" if (config.get("torch_autocast") or {}).get("enabled") else "fp32")

    def buffers(self) -> dict[str, torch.Tensor]:
        """The module's buffers."""
        module = self._model["module"]
        return {name: module[name] for name in self._model.get("buffer_names") or () if name in module}

    def tensors(self, shapes: dict[str, tuple[int, ...]], second_names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Masters and moments, as `NAME|KEY` → fp32 [numel], in the order of the shapes; one in memory at a time.

        Args:
            shapes: Every parameter of the model and its shape.
            second_names: Of tied parameters, which may be there as well.

        Raises:
            CheckpointError: The checkpoint has other parameters, or other shapes.
        """
        pieces = self._pieces()
        odd = sorted((pieces.keys() ^ shapes.keys()) - second_names)
        if odd:
            told = "missing in the recipe's model" if odd[0] in pieces else "missing in the checkpoint"
            raise CheckpointError(
                f"the parameter {odd[0]} is {told}", str(self.folder), "give the recipe of the model it was made with"
            )
        for name, shape in shapes.items():
            numel = torch.Size(shape).numel()
            for key in KEYS:
                values = torch.cat([part.reshape(-1).float() for part in pieces[name](key)])[:numel]
                if values.numel() != numel:
                    raise CheckpointError(
                        f"{name} ({key}) has {values.numel()} values, the recipe's model has {numel}",
                        str(self.folder),
                        "give the recipe of the model it was made with",
                    )
                yield f"{name}|{key}", values

    def _load_ranks(self, files: dict[int, Path]) -> list[dict[str, Any]]:
        ranks = [_load(files[rank])["optimizer_state_dict"] for rank in sorted(files)]
        count = ranks[0]["partition_count"] if ranks else 0
        wanted = max(count) if isinstance(count, list) else int(count)
        if sorted(files) != list(range(wanted)):
            raise CheckpointError(
                f"there are optimizer files of {len(files)} ranks, {wanted} wrote it",
                str(self.folder),
                "bring the missing files here",
            )
        return ranks

    def _pieces(self) -> dict[str, Callable[[str], list[torch.Tensor]]]:
        """Parameter → its consecutive parts of a kind, as views of the files."""
        if not self._ranks:
            return {str(path.relative_to(self._universal)): _universal_parts(path) for path in _leaves(self._universal)}
        if "param_slice_mappings" in self._ranks[0]:
            return _fragments(self._ranks)
        if "fp32_flat_groups" in self._ranks[0]:
            return _partitions(self._ranks, self._model["param_shapes"])
        raise CheckpointError(
            "its optimizer files have a form that is not known here",
            str(self.folder),
            "convert it with `python -m deepspeed.checkpoint.ds_to_universal` and import that",
        )


def _fragments(ranks: list[dict[str, Any]]) -> dict[str, Callable[[str], list[torch.Tensor]]]:
    """Stages 1 and 2: each rank holds a run of a flat group, and says which part of it is of which parameter."""
    found: dict[str, list[tuple[int, int, Any]]] = {}
    for number, rank in enumerate(ranks):
        for group, mapping in enumerate(rank["param_slice_mappings"]):
            for name, fragment in mapping.items():
                found.setdefault(name, []).append((number, group, fragment))

    def parts_of(name: str) -> Callable[[str], list[torch.Tensor]]:
        def parts(key: str) -> list[torch.Tensor]:
            return [_flat(ranks[r], group, key).narrow(0, f.start, f.numel) for r, group, f in found[name]]

        return parts

    return {name: parts_of(name) for name in found}


def _partitions(
    ranks: list[dict[str, Any]], param_shapes: list[dict[str, torch.Size]]
) -> dict[str, Callable[[str], list[torch.Tensor]]]:
    """Stage 3: each rank holds an equal part of every parameter, one after another in its flat groups."""
    sizes = [group.numel() for group in ranks[0]["fp32_flat_groups"]]
    found: dict[str, tuple[int, int, int]] = {}
    group = offset = 0
    for shapes in param_shapes:
        for name, shape in shapes.items():
            part = -(-shape.numel() // len(ranks))
            while offset + part > sizes[group]:  # what is left of a group is padding
                group, offset = group + 1, 0
            found[name] = (group, offset, part)
            offset += part

    def parts_of(name: str) -> Callable[[str], list[torch.Tensor]]:
        group, offset, part = found[name]
        return lambda key: [_flat(rank, group, key).narrow(0, offset, part) for rank in ranks]

    return {name: parts_of(name) for name in found}


def _flat(rank: dict[str, Any], group: int, key: str) -> torch.Tensor:
    """A flat group of a rank: masters, or a moment."""
    if key == MASTER:
        groups = rank.get("fp32_flat_groups") or rank["single_partition_of_fp32_groups"]
        return groups[group]  # type: ignore[no-any-return]
    state = rank.get("base_optimizer_state") or rank["optimizer_state_dict"]
    return state["state"][group][key].reshape(-1)  # type: ignore[no-any-return]


def _universal_parts(folder: Path) -> Callable[[str], list[torch.Tensor]]:
    def parts(key: str) -> list[torch.Tensor]:
        value = _load(folder / ("fp32.pt" if key == MASTER else f"{key}.pt"))
        return [value["param"] if isinstance(value, dict) else value]

    return parts


def _leaves(universal: Path) -> list[Path]:
    return sorted(path.parent for path in universal.rglob("fp32.pt"))


def _tag(folder: Path) -> Path:
    """The folder of one checkpoint."""
    latest = folder / "latest"
    if not latest.is_file():
        latest = folder / "latest_universal"
    tag = folder / latest.read_text(encoding="utf-8").strip() if latest.is_file() else folder
    if not tag.is_dir() or not list(tag.glob("*model_states.pt")):
        raise CheckpointError(
            "there is no checkpoint of DeepSpeed's here",
            str(tag),
            "give a folder with mp_rank_00_model_states.pt or zero_pp_rank_0_mp_rank_00_model_states.pt in it",
        )
    return tag


def _refuse_foreign(folder: Path) -> None:
    for path in sorted(folder.glob("*.pt")):
        for pattern, why in _FOREIGN.items():
            if re.fullmatch(pattern, path.name):
                raise CheckpointError(
                    f"{why}, which is not read here",
                    str(path),
                    "convert it with `python -m deepspeed.checkpoint.ds_to_universal` and import that",
                )


def _first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {named[1]}" if named else "it holds more than tensors and plain values"
        raise CheckpointError(
            f"the file is refused: {what}, which is not on the list of what may be in DeepSpeed's checkpoints",
            str(path),
            "load it where you trust it, and save the weights alone; or take one that DeepSpeed itself wrote",
        ) from None
    except Exception as error:  # over damaged bytes the unpickler stumbles with whatever comes
        if faults.is_of_place(error):
            raise
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"the file cannot be read: {told}", str(path), "bring it back from a copy") from None
