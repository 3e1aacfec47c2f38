"""Folders of transformers, read without asking anybody outside; code in them runs only where the recipe names it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_relative_imports

from launcher.config.code_names import can_be_named
from launcher.errors import ModelError, did_you_mean
from launcher.models.code_copies import own_copies

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that take `tokenizer.json` as it is, by their name of old and of today."""
CUSTOM_GENERATE = "custom_generate/generate.py"
"""Runs as soon as a folder's code may: `GenerationMixin.adjust_generation_fn` of transformers 5."""


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
    """Whether code in a folder runs: where there is such code, and all of its files are trusted.

    Raises:
        ModelError: Files are trusted, but not all that would run.
    """
    needed = code_of(folder) if trusted else set()
    if needed - {file for file in trusted if can_be_named(file)}:
        raise untrusted_code(folder)
    if needed:
        own_copies()
    return bool(needed)


def code_texts(folder: Path | None, names: Iterable[str]) -> dict[str, str]:
    """The code that a run keeps with its checkpoints, without which their configuration means nothing.

    Args:
        folder: The model that training starts from; None from scratch, where no names are.
        names: `model.trusted_code`.

    Returns:
        Name → text.

    Raises:
        ModelError: A name is no readable file of the folder.
    """
    if folder is None:
        return {}
    texts = {}
    for name in names:
        try:
            texts[name] = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            there = [path.name for path in folder.glob("*.py")]
            raise ModelError(
                f"{name} of model.trusted_code cannot be read: {reason}",
                str(folder),
                did_you_mean(name, there) if there else "put the code of the model back there",
            ) from None
    return texts


def untrusted_code(folder: Path) -> ModelError:
    """The error of a folder whose code is not all trusted."""
    files = sorted(code_of(folder))
    what = f"the model needs code that came with it ({', '.join(files)}), and such code is not run unless it is named"
    if unnamed := [file for file in files if not can_be_named(file)]:
        return ModelError(
            f"{what}; {unnamed[0]} cannot be named",
            str(folder),
            "in a copy of the folder, delete custom_generate/, and put files that config.json's auto_map takes from "
            "elsewhere beside it; or take a family that transformers itself has",
        )
    return ModelError(
        what,
        str(folder),
        f"read it, then model.trusted_code=[{', '.join(files)}] in the recipe of a run, or --trust {' '.join(files)} "
        "behind pretrain fill, generate or export; or take a family that transformers itself has",
    )


def code_of(folder: Path) -> set[str]:
    """The Python files that the model in a folder would run, relative to it: those its configuration names, what they
    import, and what transformers puts in place of `generate`.

    `can_be_named` tells those that never run here: code of the hub or of another folder, and code in folders below.
    """
    names = {f"{name.rpartition('.')[0]}.py" for name in _classes(_configuration(folder))}
    if (folder / CUSTOM_GENERATE).is_file():
        names.add(CUSTOM_GENERATE)
    found: set[str] = set()
    while names:
        found |= names
        names = {name for file in names for name in _imports(folder / file)} - found
    return found


def _configuration(folder: Path) -> object:
    """What transformers would read, following `configuration_files`; nothing where it cannot be read."""
    try:
        return PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0]
    except (OSError, ValueError, TypeError, AttributeError):  # told by whoever reads it
        return {}


def _classes(told: object) -> Iterator[str]:
    """Classes that a configuration names, parts of it included: a class may take a part for the whole."""
    if isinstance(told, list):
        for part in told:
            yield from _classes(part)
    if not isinstance(told, dict):
        return
    for key, value in told.items():
        yield from _classes(value)
        if key == "auto_map" and isinstance(value, dict):
            # A tokenizer's code never runs here.
            named = [name for task, name in value.items() if task != "AutoTokenizer"]
            yield from (str(name) for name in named if name is not None)


def _imports(file: Path) -> list[str]:
    """The files beside one that transformers would run with it."""
    try:
        return [f"{name}.py" for name in get_relative_imports(file)]
    except (OSError, UnicodeDecodeError):  # told by whoever runs it
        return []


def has_own_class(config: PreTrainedConfig, auto_class: str) -> bool:
    """Whether code that came with a model, and was allowed to run, has a class for a task."""
    return auto_class in (getattr(config, "auto_map", None) or {})


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, with the ids it was saved with.

    For some models (Qwen2's, transformers 5.23) `AutoTokenizer` takes the model's own class, whatever is named,
    which cuts texts in another way than a tokenizer that was trained on them.

    Raises:
        OSError, ValueError, KeyError: transformers cannot read it.
    """
    reader = PreTrainedTokenizerFast if _is_generic(folder) else AutoTokenizer
    return reader.from_pretrained(folder, **local(folder))


def misread_as(folder: Path) -> str | None:
    """The class by which `AutoTokenizer` would cut texts in another way than `read_tokenizer`; None where it does not.

    Raises:
        OSError, ValueError, KeyError: transformers cannot read it.
    """
    if not _is_generic(folder):
        return None
    found = type(AutoTokenizer.from_pretrained(folder, **local(folder))).__name__
    return None if found in GENERIC else found


def _is_generic(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return isinstance(config, dict) and config.get("tokenizer_class") in GENERIC


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
    except (OSError, ValueError, KeyError, ImportError) as error:
        told = " ".join(str(error).split())
        if "trust_remote_code" in told:
            raise untrusted_code(folder) from None
        raise ModelError(f"its configuration cannot be read: {told.partition('. ')[0]}", str(folder)) from None
    config.name_or_path = str(folder)  # `from_config` runs code from there, and config.json can name another place
    return config


@contextmanager
def reading_weights(folder: Path) -> Iterator[None]:
    """Around a `from_pretrained`.

    Raises:
        ModelError: The weights are not there, or damaged, or need code that came with them and is not trusted.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise untrusted_code(folder) from None
        raise
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
