"""From a checkpoint of any stage and world size to a folder that `transformers` reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from launcher.checkpoint import folder as layout
from launcher.checkpoint.find import Skipped, newest_sound
from launcher.checkpoint.load import CheckpointReader
from launcher.checkpoint.model_files import write_model_files
from launcher.config.recipe import Recipe
from launcher.errors import CheckpointError, UsageError
from launcher.models.build import AUTO_CLASSES
from launcher.models.local import code_of, misread_as, read_config, runs_code, untrusted_code
from launcher.units import count

SHARD_BYTES = 5 * 10**9
"""Most bytes of weights in a file: the hub's own limit was so for long, and tools stream files of that size."""

_WARNING = """\
## Tokenizer

`PreTrainedTokenizerFast.from_pretrained` gives the ids that the model was trained on. `AutoTokenizer` gives others: for
models of this family it takes `{}`, whatever the folder names.

"""


def export_run(
    run: Path,
    out: Path,
    step: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    trusted: Collection[str] = (),
) -> tuple[Path, list[str]]:
    """Export a checkpoint of a run.

    Args:
        run: The run's folder.
        out: Folder to write. An earlier export there is replaced once the new one is complete; anything else is kept.
        step: Checkpoint to take; the newest sound one without it.
        shard_bytes: Most bytes of weights in one file.
        trusted: Files of the model's own code that may run. The run's recipe does not tell: it may be somebody else's.

    Returns:
        The checkpoint that was taken, and a line for each newer one that is damaged.

    Raises:
        CheckpointError: There is no such checkpoint, or its files are damaged.
        ModelError: The model needs code that is not trusted.
        UsageError: `out` holds something that is no exported model.
    """
    checkpoints = run / "checkpoints"
    steps = layout.complete_steps(checkpoints)
    if step is not None and step not in steps:
        have = f"choose one of the steps {', '.join(map(str, steps))}" if steps else "train the run first"
        raise CheckpointError(f"there is no complete checkpoint of step {step}", str(checkpoints), have)
    skipped: tuple[Skipped, ...] = ()
    if step is not None:
        path = layout.checkpoint_path(checkpoints, step)
        layout.verify(path)
    else:
        found = newest_sound(checkpoints, steps)
        if found.path is None:
            raise CheckpointError("there is no complete checkpoint", str(checkpoints), "train the run first")
        path, skipped = found.path, found.skipped
    export_checkpoint(path, run, out, shard_bytes, trusted)
    return path, [f"the checkpoint of step {entry.step} is damaged: {entry.why}" for entry in skipped]


def export_checkpoint(
    path: Path, run: Path, out: Path, shard_bytes: int = SHARD_BYTES, trusted: Collection[str] = ()
) -> Path:
    """Write weights (safetensors, fp32), configuration, tokenizer and a model card, in memory for a layer.

    Args:
        path: A checkpoint that has been verified.
        run: The folder of its run.
        out: As for `export_run`.
        shard_bytes: Likewise.
        trusted: Likewise.

    Returns:
        `out`, links followed.

    Raises:
        ModelError: The model needs code that is not trusted.
        UsageError: `out` holds something that is no exported model.
    """
    out = out.resolve()  # a link is kept, and what it leads to replaced
    _refuse_other_content(out)
    recipe = layout.read_recipe(path)
    saving = out.with_name(f".{out.name}.saving")
    shutil.rmtree(saving, ignore_errors=True)
    try:
        saving.mkdir()
        _write(path, recipe, run, saving, shard_bytes, trusted)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(saving, out)
    finally:
        shutil.rmtree(saving, ignore_errors=True)
    return out


def _refuse_other_content(out: Path) -> None:
    """Never delete what an export did not write.

    Raises:
        UsageError: The place is taken by a file, or by a folder with other content than a model.
    """
    if out.is_dir() and (
        not any(out.iterdir()) or {"config.json", "README.md"} <= {path.name for path in out.iterdir()}
    ):
        return
    if out.exists():
        raise UsageError("there is something here that is no exported model", str(out), "give a new folder as --out")


def _write(path: Path, recipe: Recipe, run: Path, folder: Path, shard_bytes: int, trusted: Collection[str]) -> None:
    if recipe.model.trusted_code and code_of(path) and not runs_code(path, trusted):
        raise untrusted_code(path)  # transformers may have a family of that name, but it was not what was trained
    config = read_config(path, trusted)
    auto = AUTO_CLASSES[recipe.objective.head]
    with torch.device("meta"):
        model = auto.from_config(config, dtype=torch.float32, trust_remote_code=runs_code(path, trusted))
    model.tie_weights()
    with CheckpointReader(path) as reader:
        write_model_files(model, reader, folder, shard_bytes)
        state = reader.state
    model.config.dtype = "float32"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    for name in recipe.model.trusted_code:
        shutil.copyfile(path / name, folder / name)
    shutil.copytree(run / "tokenizer", folder, dirs_exist_ok=True)
    # The shards' tokenizer knows no length; the model's is what users' truncation=True should cut to.
    tokenizer_config = folder / "tokenizer_config.json"
    fields = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    fields["model_max_length"] = getattr(config, "max_position_embeddings", None) or recipe.data.seq_len
    tokenizer_config.write_text(json.dumps(fields, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    (folder / "README.md").write_text(model_card(recipe, state, num_parameters, misread_as(folder)), encoding="utf-8")


def model_card(recipe: Recipe, state: dict[str, Any], num_parameters: int, misread: str | None = None) -> str:
    """The card that goes with an exported model: data, recipe, losses.

    Args:
        recipe: What it was trained by.
        state: Of its checkpoint.
        num_parameters: Of the model.
        misread: The class by which `AutoTokenizer` would cut texts otherwise than they were for training.
    """
    tasks = {"causal": "text-generation", "seq2seq": "text2text-generation"}
    fields = recipe.model_dump(mode="json", exclude_none=True)
    data = state["data"]
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {tasks.get(recipe.objective.head, 'fill-mask')}",
        "---",
        f"# {recipe.name}",
        "",
        f"A model of {count(num_parameters)} parameters, pretrained with {recipe.objective.kind} for "
        f"{state['step']} steps on {count(state['tokens'])} tokens.",
        "",
        *(_WARNING.format(misread).splitlines() if misread else ()),
        "## Data",
        "",
        f"{data['num_documents']} documents, {count(data['num_tokens'])} tokens; held out for validation: "
        f"{data['num_validation_documents']} documents. Sources: {', '.join(data['sources'])}.",
        "",
        "## Loss",
        "",
        "| step | validation loss (nats per predicted token) | accuracy |",
        "|---|---|---|",
        *(f"| {row['step']} | {row['loss']:.4f} | {row['accuracy']:.1%} |" for row in state["evaluations"]),
        "",
        f"Unigram entropy of the validation text: {data['unigram_entropy']:.4f} nats per token.",
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps(fields, ensure_ascii=False, indent=2),
        "```",
        "",
        f"Made with {', '.join(f'{name} {version}' for name, version in state['versions'].items())}.",
        "",
    ]
    return "\n".join(lines)
