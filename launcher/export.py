"""From a checkpoint of any stage and world size to a folder that `transformers` reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from launcher.checkpoint import folder as layout
from launcher.checkpoint.buffers import restore_buffers
from launcher.checkpoint.load import CheckpointReader
from launcher.config.loading import check_recipe, read_yaml
from launcher.config.recipe import Recipe
from launcher.errors import CheckpointError, UsageError
from launcher.models.build import AUTO_CLASSES
from launcher.models.local import read_config
from launcher.units import count


def export_run(run: Path, out: Path, step: int | None = None) -> Path:
    """Write weights (safetensors, fp32), configuration, tokenizer and a model card.

    Args:
        run: The run's folder.
        out: Folder to write. An earlier export there is replaced once the new one is complete; anything else is kept.
        step: Checkpoint to take; the newest complete one without it.

    Returns:
        `out`.

    Raises:
        CheckpointError: There is no such checkpoint, or its files are damaged.
        UsageError: `out` holds something that is no exported model.
    """
    out = out.resolve()  # a link is kept, and what it leads to replaced
    _refuse_other_content(out)
    checkpoints = run / "checkpoints"
    steps = layout.complete_steps(checkpoints)
    if not steps or (step is not None and step not in steps):
        missing = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
        have = f"choose one of the steps {', '.join(map(str, steps))}" if steps else "train the run first"
        raise CheckpointError(f"there is {missing}", str(checkpoints), have)
    path = layout.checkpoint_path(checkpoints, step if step is not None else steps[-1])
    layout.verify(path)
    recipe = check_recipe(read_yaml(path / "recipe.yaml"), str(path / "recipe.yaml"))
    saving = out.with_name(f".{out.name}.saving")
    shutil.rmtree(saving, ignore_errors=True)
    try:
        _write(path, recipe, run, saving)
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


def _write(path: Path, recipe: Recipe, run: Path, folder: Path) -> None:
    config = read_config(path)
    auto = AUTO_CLASSES[recipe.objective.head]
    with torch.device("meta"):
        model = auto.from_config(config, dtype=torch.float32)
    model.to_empty(device="cpu")
    model.tie_weights()
    with CheckpointReader(path) as reader, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reader.read_whole(name))
        restore_buffers(model, reader.buffers())
        state = reader.state
    disable_progress_bar()
    model.save_pretrained(folder)
    shutil.copytree(run / "tokenizer", folder, dirs_exist_ok=True)
    # The shards' tokenizer knows no length; the model's is what users' truncation=True should cut to.
    tokenizer_config = folder / "tokenizer_config.json"
    fields = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    fields["model_max_length"] = getattr(config, "max_position_embeddings", None) or recipe.data.seq_len
    tokenizer_config.write_text(json.dumps(fields, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    (folder / "README.md").write_text(model_card(recipe, state, num_parameters), encoding="utf-8")


def model_card(recipe: Recipe, state: dict[str, Any], num_parameters: int) -> str:
    """The card that goes with an exported model: data, recipe, losses."""
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
