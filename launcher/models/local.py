"""Folders of transformers, read without asking anybody outside; code in them runs only where the recipe names it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

from launcher.errors import ModelError


def local(folder: Path, trusted: Collection[str] = ()) -> dict[str, bool]:
    """What every `from_pretrained` is given.

    Left to itself, transformers asks the hub for files it does not find, and asks the terminal whether a folder's own
    code may run.

    Args:
        folder: Of the model.
        trusted: Files there whose code may run.
    """
    return {"local_files_only": True, "trust_remote_code": runs_code(folder, trusted)}


def runs_code(folder: Path, trusted: Collection[str]) -> bool:
    """Whether code in a folder runs: where all files that the model would run are trusted."""
    return bool(trusted) and code_of(folder) <= {*trusted}


def code_of(folder: Path) -> set[str]:
    """The Python files that the model in a folder would run: those its configuration names, and what they import."""
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    except (OSError, ValueError, AttributeError):  # told by whoever reads it
        return set()
    classes = [name for value in told.values() for name in (value if isinstance(value, list) else [value])]
    # `REPOSITORY--module.Class` is code of the hub: it has no file here, and so a name that nobody can trust.
    files = {f"{str(name).rpartition('.')[0]}.py" for name in classes}
    here = [folder / name for name in files if (folder / name).is_file()]
    return files | {Path(path).name for file in here for path in get_relative_import_files(file)}


def has_own_class(config: PreTrainedConfig, auto_class: str) -> bool:
    """Whether code that came with a model, and was allowed to run, has a class for a task."""
    return auto_class in (getattr(config, "auto_map", None) or {})


def read_config(folder: Path, trusted: Collection[str] = ()) -> PreTrainedConfig:
    """The configuration of the model in a folder.

    Args:
        folder: Holds config.json.
        trusted: Files there whose code may run.

    Raises:
        ModelError: It cannot be read, or needs code that came with it and is not trusted.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **local(folder, trusted))
    except (OSError, ValueError, KeyError) as error:
        told = " ".join(str(error).split())
        if "trust_remote_code" in told:
            files = ", ".join(sorted(code_of(folder)))
            raise ModelError(
                f"the model needs code that came with it ({files}), and such code is not run unless it is named",
                str(folder),
                f"read it, then model.trusted_code=[{files}]; or take a family that transformers itself has",
            ) from None
        raise ModelError(f"its configuration cannot be read: {told.partition('. ')[0]}", str(folder)) from None
    return config


@contextmanager
def reading_weights(folder: Path) -> Iterator[None]:
    """Around a `from_pretrained`.

    Raises:
        ModelError: The weights are not there, or damaged.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelError(
            f"the weights cannot be read: {first_line}", str(folder), "copy or export the folder again"
        ) from None


def refuse_incomplete(missing: Collection[str], folder: Path, fix: str) -> None:
    """Refuse a model some of whose weights were drawn, for want of them in its folder.

    Args:
        missing: Names of those, as `from_pretrained` tells them.
        folder: Where they are missing.
        fix: What to do about it.

    Raises:
        ModelError: There are any.
    """
    if missing:
        what = f"the folder lacks {len(missing)} of the model's weights, {min(missing)} among them"
        raise ModelError(what, str(folder), fix)
