"""What a host tells about itself: what must be the same everywhere, and what there must be enough of."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from launcher.config.deepspeed import load_ds_config
from launcher.config.loading import load_recipe, resolved_yaml
from launcher.config.recipe import Recipe
from launcher.doctor.space import checkpoint_bytes, memory
from launcher.doctor.versions import TRAINING, installed
from launcher.errors import LauncherError
from launcher.plan.parameters import count_parameters
from launcher.prepare.quickstart import QUICKSTART_FOLDER
from launcher.probe.wire import Message
from launcher.shards.blocks import refuse_unreadable
from launcher.shards.manifest import CHECKSUMS, MANIFEST, read_manifest
from launcher.shards.verify import check_sizes

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the run will be started with."""

    recipe: str
    overrides: Sequence[str]
    ds_config: str | None


def collect(question: Question) -> Message:
    """Look at this host. What cannot be read is told as the error it would end the run with."""
    same = {"code": code_hash(), "python": sys.version.split()[0], "versions": _versions(), "driver": _driver()}
    room = {"memory": asdict(memory()), "shm_bytes": _free("/dev/shm"), "load": os.getloadavg()[0]}
    room["cores"] = os.cpu_count() or 1
    errors: list[list[str]] = []
    try:
        loaded = load_recipe(question.recipe, question.overrides)
    except LauncherError as error:
        return {"same": same, "room": room, "errors": [_told(error)]}
    recipe = loaded.recipe
    same["recipe"] = _hash(resolved_yaml(recipe).encode())
    if question.ds_config is not None:
        try:
            same["ds_config"] = _hash(repr(sorted(load_ds_config(question.ds_config).items())).encode())
        except LauncherError as error:
            errors.append(_told(error))
    makes_them = loaded.is_quickstart and recipe.data.shards == QUICKSTART_FOLDER / "shards"
    try:
        same |= dict(_shards(recipe))
        vocab_size = read_manifest(next(iter(recipe.data.corpora.values())).shards).tokenizer.vocab_size
    except LauncherError as error:
        vocab_size = 0
        if not makes_them:
            errors.append(_told(error))
    folder = runs_folder(recipe)
    num_parameters = count_parameters(recipe.model, vocab_size)
    room |= {
        "runs": str(folder.absolute()),
        "disk_bytes": _free(str(folder)),
        "needed_bytes": checkpoint_bytes(recipe, num_parameters) if num_parameters else 0,
    }
    return {"same": same, "room": room, "errors": errors}


def runs_folder(recipe: Recipe) -> Path:
    """The run's folder, or the one it will be made in."""
    return next(path for path in (recipe.run_folder, *recipe.run_folder.absolute().parents) if path.is_dir())


def code_hash() -> str:
    """Of every file of the package that decides what it does."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".json") and path.is_file():
            digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def host_name(env: Mapping[str, str]) -> str:
    """This host, as its scheduler calls it."""
    return env.get("SLURMD_NODENAME") or os.uname().nodename


def _shards(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """A hash of each corpus: of its manifest, which holds one of every block, and of the checksums; sizes are checked.

    Raises:
        ShardError: They are missing, damaged, or files have other sizes.
        RequeueError: Their file system is gone.
    """
    for name, corpus in recipe.data.corpora.items():
        check_sizes(corpus.shards, read_manifest(corpus.shards))
        digest = xxhash.xxh3_128()
        for file in (MANIFEST, CHECKSUMS):
            try:
                digest.update((corpus.shards / file).read_bytes())
            except OSError as error:
                refuse_unreadable(error, corpus.shards / file)
        yield "shards" if len(recipe.data.corpora) == 1 else f"shards {name}", digest.hexdigest()[:16]


def _told(error: LauncherError) -> list[str]:
    """What is wrong and where, and the fix."""
    return [f"{error.what} ({error.where})" if error.where else error.what, error.fix]


def _versions() -> str:
    return ", ".join(f"{name} {installed(name) or 'missing'}" for name in TRAINING)


def _driver() -> str:
    """The kernel's NVIDIA driver; empty without one."""
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text(encoding="ascii", errors="replace").split() if path.is_file() else []
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), "")


def _free(folder: str) -> int:
    return shutil.disk_usage(folder).free if Path(folder).is_dir() else 0


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
