"""Folders of transformers, read without asking anybody outside and without running code that lies in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig

from launcher.errors import ModelError

LOCAL = MappingProxyType({"local_files_only": True, "trust_remote_code": False})
"""What every `from_pretrained` is given. Left to itself, transformers asks the hub for files it does not find, and asks
the terminal whether a folder's own code may run."""


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the model in a folder.

    Raises:
        ModelError: It cannot be read, or needs code that came with it.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **LOCAL)
    except (OSError, ValueError, KeyError) as error:
        told = " ".join(str(error).split())
        if "trust_remote_code" in told:
            raise ModelError(
                "the model needs code that lies in its folder, and such code is never run here",
                str(folder),
                "take a family that transformers itself has",
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
