"""What a run has come to, for its reader."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.config.objectives import Head
from launcher.config.recipe import Recipe

ASK: dict[Head, tuple[str, str]] = {
    "masked": ("fill", "人民[MASK]院"),
    "next_sentence": ("fill", "人民[MASK]院"),
    "sentence_order": ("fill", "人民[MASK]院"),
    "causal": ("generate", "第一条"),
    "seq2seq": ("generate", "人民<extra_id_0>院"),
}


def show_answers(console: Console, answers: list[Any]) -> None:
    """A table of prompts and what the model made of them.

    Args:
        console: Where it goes.
        answers: `launcher.ask.Answer` records.
    """
    with_choices = any(answer.blanks for answer in answers)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("asked", "answered", "first choices")[: 3 if with_choices else 2]:
        table.add_column(title, overflow="fold")
    for answer in answers:
        blanks = ["  ".join(f"{w} {p:.0%}" for w, p in zip(b.words, b.shares, strict=True)) for b in answer.blanks]
        table.add_row(answer.prompt, answer.text, *([" | ".join(blanks)] if with_choices else []))
    console.print(table, markup=False)


def show_summary(console: Console, recipe: Recipe, state: dict[str, Any], checkpoint: Path, answers: list[Any]) -> None:
    """The closing lines: losses before and after, answers, where everything lies, what to run next."""
    run = recipe.run_folder
    console.rule(f"{recipe.name}: {state['step']} steps")
    if state["evaluations"]:
        before, after = state["evaluations"][0], state["evaluations"][-1]
        # A stop in the last validation saves without it: what is made up for it later is in the log alone.
        at = "" if after["step"] == state["step"] else f" at step {after['step']}"
        console.print(
            f"validation loss {before['loss']:.3f} → {after['loss']:.3f}{at} nats a token; "
            f"right first answers {before['accuracy']:.1%} → {after['accuracy']:.1%}",
            f"unigram entropy of the same text (guessing by frequency alone): {state['data']['unigram_entropy']:.3f}",
            sep="\n",
            highlight=False,
        )
        if "pair_accuracy" in after:
            told = f"right labels of pairs {before['pair_accuracy']:.1%} → {after['pair_accuracy']:.1%}"
            console.print(told, highlight=False)
    if answers:
        console.print()
        show_answers(console, answers)
    verb, text = ASK[recipe.objective.head]
    trust = " ".join(["--trust", *recipe.model.trusted_code]) if recipe.model.trusted_code else ""
    rows = [
        ("model", f"{run / 'export'}/", "a transformers folder"),
        ("checkpoint", f"{checkpoint}/", "the same command goes on from here"),
        ("metrics", quote(f"{run / 'metrics.jsonl'}"), f"or: tensorboard --logdir {quote(f'{run}/tensorboard')}"),
        ("ask it", f'pretrain {verb} {quote(str(run))} "{text}"', trust),
        (
            "train on",
            f"deepspeed launcher/train.py --ds_config zero3.json --recipe {quote(f'{run}/recipe.yaml')}",
            f"train.num_steps={2 * state['step']}",
        ),
    ]
    console.print()
    for name, value, remark in rows:
        console.print(f"{name:<11} {value}  {remark}", highlight=False, markup=False, soft_wrap=True)
