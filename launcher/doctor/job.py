"""A recipe, its shards, its tokenizer, DeepSpeed's JSON and the machines together: the checks the run itself makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher import units
from launcher.checkpoint.find import newest_sound, problem_at_a_glance
from launcher.checkpoint.folder import complete_steps, read_recipe
from launcher.cluster.hostfile import read_hostfile
from launcher.cluster.hosts import check_names
from launcher.cluster.render import BATCH_SCRIPT
from launcher.config.deepspeed import find_ds_config, load_ds_config, resolve_ds_config, zero_stage
from launcher.config.deepspeed_check import check_ds_config
from launcher.config.doubts import recipe_doubts
from launcher.config.loading import LoadedRecipe, load_recipe, refuse_other_recipe
from launcher.config.places import ROOT
from launcher.config.recipe import Recipe
from launcher.doctor.findings import Finding, from_error
from launcher.doctor.machine import look_at_hub
from launcher.doctor.slurm import Wanted, look_at_slurm, of_script
from launcher.doctor.space import World, look_at_packages, look_at_space
from launcher.errors import LauncherError, UsageError
from launcher.feed.data import build_objective, one_tokenizer, refuse_unkept
from launcher.prepare.hub import HUB
from launcher.prepare.quickstart import QUICKSTART_FOLDER
from launcher.prepare.ready import check_tokenizer, ensure_shards
from launcher.shards.manifest import Manifest, read_manifest
from launcher.shards.verify import check_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be run, and on what."""

    recipe: str
    """A YAML file, or the name of a shipped recipe."""
    overrides: Sequence[str] = ()
    """`key=value` words."""
    ds_config: str | None = None
    """A path, or the name of a file in `ds_configs/`."""
    ranks: int | None = None
    """Of the whole run."""
    nodes: int | None = None
    """They are spread over."""
    hostfile: Path | None = None
    """Says both."""
    partition: str | None = None
    """Of Slurm, as the two below; what is not given is read from the #SBATCH lines of slurm/pretrain.sh."""
    account: str | None = None
    time: str | None = None
    """Limit of the job."""


def look_at_job(job: Job, env: Mapping[str, str], device_bytes: int | None = None) -> Iterator[Finding]:
    """Everything about a run that can be told before it is queued.

    Args:
        job: What is to be run.
        env: The environment.
        device_bytes: Memory of the smallest accelerator of this machine; None where it has none.

    Raises:
        UsageError: Hostfile and numbers were both given, or numbers that cannot be.
    """
    try:
        loaded = load_recipe(job.recipe, job.overrides)
    except LauncherError as error:
        yield from_error("recipe", error)
        return
    recipe = loaded.recipe
    yield Finding(name="recipe", state="ok", found=f"{recipe.name}, {recipe.train.num_steps} steps")
    for doubt in recipe_doubts(recipe):
        yield Finding(name="recipe", state="note", found=doubt, fix="see pretrain recipe --explain")
    world = None
    try:
        world = _world(job)
        if job.hostfile is not None:
            check_names(read_hostfile(job.hostfile))
            found = f"every name has an address; pretrain hostfile {job.hostfile} --reach asks each host"
            yield Finding(name="hostfile", state="ok", found=found)
    except UsageError:
        raise
    except LauncherError as error:
        yield from_error("hostfile", error)
    yield from _batch(recipe, world)
    ds_file, findings = _ds_config(job, recipe, world, device_bytes)
    yield from findings
    manifests, findings = _data(loaded)
    yield from findings
    yield from _run_folder(recipe)
    yield from look_at_packages(recipe, ds_file)
    yield from look_at_hub(env, tuple(word for word in recipe.data.corpus if word.startswith(HUB)))
    yield from look_at_space(recipe, manifests, ds_file, world, device_bytes)
    if job.hostfile is None:
        yield from look_at_slurm(_wanted_of_slurm(job, recipe))


def _world(job: Job) -> World | None:
    if job.hostfile is not None:
        if job.ranks is not None or job.nodes is not None:
            raise UsageError(
                "a hostfile says how many ranks and nodes there are", "--ranks, --nodes", "give one of them"
            )
        hosts = read_hostfile(job.hostfile)
        return World(sum(host.slots for host in hosts), len(hosts))
    if job.ranks is None:
        if job.nodes is not None:
            raise UsageError("--nodes alone tells no number of ranks", "--nodes", "add --ranks, of all nodes together")
        return None
    nodes = job.nodes or 1
    if nodes > job.ranks:
        raise UsageError(f"{job.ranks} ranks on {nodes} nodes: some have none", "--ranks", "it counts all nodes' ranks")
    return World(job.ranks, nodes)


def _wanted_of_slurm(job: Job, recipe: Recipe) -> Wanted:
    of_lines = of_script(ROOT / BATCH_SCRIPT)
    model = recipe.model
    return Wanted(
        nodes=job.nodes,
        ranks_per_node=-(-job.ranks // (job.nodes or 1)) if job.ranks else None,
        partition=job.partition or of_lines.get("partition"),
        account=job.account or of_lines.get("account"),
        time=job.time or of_lines.get("time"),
        needs_gpus=model.liger or model.experts == "megablocks" or model.attention.startswith("flash_attention"),
    )


def _batch(recipe: Recipe, world: World | None) -> Iterator[Finding]:
    """The batch, cut for so many ranks."""
    if world is None:
        found = f"{recipe.batch.global_batch} sequences a step; not cut yet, for the number of ranks is not known"
        yield Finding(name="batch", state="note", found=found, fix="--ranks N [--nodes N], or --hostfile FILE")
        return
    try:
        plan = recipe.cut_batch(world.ranks)
    except LauncherError as error:
        yield from_error("batch", error)
        return
    tokens = units.count(plan.global_batch * recipe.data.seq_len)
    measured = ", measured at the start" if recipe.batch.micro_batch == "auto" else ""
    found = (
        f"{plan.global_batch} sequences ({tokens} tokens) a step = {world.ranks} ranks x {plan.micro_batch} a pass "
        f"x {plan.grad_accum_steps} passes{measured}"
    )
    yield Finding(name="batch", state="ok", found=found)


def _ds_config(
    job: Job, recipe: Recipe, world: World | None, device_bytes: int | None
) -> tuple[dict[str, Any], list[Finding]]:
    """The DeepSpeed JSON by itself, and joined with the recipe."""
    name = "ds_config"
    if job.ds_config is None:
        return {}, [
            Finding(name=name, state="note", found="none given", fix="--ds_config FILE: it is checked with the recipe")
        ]
    try:
        path = find_ds_config(job.ds_config)
        file = load_ds_config(job.ds_config)
        told = check_ds_config(file, str(path), device_bytes=device_bytes)
    except LauncherError as error:
        return {}, [from_error(name, error)]
    fix = f"see pretrain ds-config --check {path}"
    doubts = [Finding(name=name, state="note", found=doubt, fix=fix) for doubt in told]
    found = f"{path}: ZeRO stage {zero_stage(file)}"
    if world is not None:
        try:
            plan = recipe.cut_batch(world.ranks)
        except LauncherError:
            return file, [Finding(name=name, state="ok", found=found), *doubts]  # told with the batch
        precision = "bf16_autocast" if recipe.train.precision == "auto" else recipe.train.precision
        try:
            resolve_ds_config(file, recipe, plan, precision)
        except LauncherError as error:
            return file, [from_error(name, error), *doubts]
    return file, [Finding(name=name, state="ok", found=found), *doubts]


def _data(loaded: LoadedRecipe) -> tuple[dict[str, Manifest], list[Finding]]:
    """Shards, tokenizer and objective."""
    recipe = loaded.recipe
    makes_them = loaded.is_quickstart and recipe.data.shards == QUICKSTART_FOLDER / "shards"
    try:
        if not makes_them:
            ensure_shards(loaded, Console(quiet=True))
        manifests = {name: read_manifest(corpus.shards) for name, corpus in recipe.data.corpora.items()}
        for name, corpus in recipe.data.corpora.items():
            check_sizes(corpus.shards, manifests[name])
    except LauncherError as error:
        if makes_them:
            return {}, [Finding(name="shards", state="ok", found="the quick start's are made when it is first run")]
        return {}, [from_error("shards", error)]
    findings = [_tell_shards(recipe, manifests)]
    try:
        refuse_unkept(recipe)
    except LauncherError as error:
        findings.append(from_error("data", error))
    try:
        tokenizer = one_tokenizer(recipe.data, manifests)
        check_tokenizer(recipe, tokenizer)
    except LauncherError as error:
        return manifests, [*findings, from_error("tokenizer", error)]
    findings.append(Finding(name="tokenizer", state="ok", found=f"{tokenizer.name}, {tokenizer.vocab_size} tokens"))
    try:
        build_objective(recipe, tokenizer, manifests, recipe.train.seed)
    except LauncherError as error:
        return manifests, [*findings, from_error("objective", error)]
    findings.append(
        Finding(name="objective", state="ok", found=f"{recipe.objective.kind}: tokenizer and length serve it")
    )
    return manifests, findings


def _run_folder(recipe: Recipe) -> Iterator[Finding]:
    """What is in the run's folder already."""
    checkpoints = recipe.run_folder / "checkpoints"
    try:
        newest = newest_sound(checkpoints, complete_steps(checkpoints), problem_at_a_glance).path
        if newest is None:
            return
        refuse_other_recipe(recipe, read_recipe(newest), newest)
    except LauncherError as error:
        yield from_error("run", error)
        return
    yield Finding(name="run", state="ok", found=f"goes on from {newest} of {recipe.train.num_steps} steps")


def _tell_shards(recipe: Recipe, manifests: Mapping[str, Manifest]) -> Finding:
    """How much text there is, and how often the run reads it."""
    there = sum(manifest.splits["train"].num_tokens for manifest in manifests.values())
    wanted = recipe.batch.schedule.position_at(recipe.train.num_steps) * recipe.data.seq_len
    found = f"{units.count(there)} tokens; the run reads {units.count(wanted)}, {wanted / max(there, 1):.2g} times all"
    return Finding(name="shards", state="ok", found=found)
