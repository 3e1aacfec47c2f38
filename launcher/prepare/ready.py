"""What must be there before a run can start: its shards, and the tokenizer they were made with."""

from __future__ import annotations

import shlex

from rich.console import Console

from launcher.config.loading import LoadedRecipe
from launcher.config.recipe import Recipe
from launcher.errors import ShardError, TokenizerError
from launcher.prepare.quickstart import QUICKSTART_FOLDER, prepare_quickstart
from launcher.prepare.tokenizer import load_tokenizer
from launcher.shards.manifest import TokenizerInfo


def ensure_shards(loaded: LoadedRecipe, console: Console) -> None:
    """See that the shards are there; the quick start's are made on the spot.

    Raises:
        ShardError: They are not; the fix is the command that prepares them.
    """
    data, quickstart = loaded.recipe.data, QUICKSTART_FOLDER / "shards"
    if loaded.is_quickstart and data.shards == quickstart:
        prepare_quickstart(QUICKSTART_FOLDER, console=console)
        return
    for corpus in data.corpora.values():
        if (corpus.shards / "manifest.json").is_file():
            continue
        text = " ".join(shlex.quote(path) for path in data.corpus) or "CORPUS"
        tokenizer = shlex.quote(str(data.tokenizer)) if data.tokenizer else "DIR"
        fix = f"pretrain prepare {text} --tokenizer {tokenizer} --out {shlex.quote(str(corpus.shards))}"
        if corpus.shards == quickstart:
            fix += "\n         or, where corpus and tokenizer are missing too: pretrain quickstart"
        elif data.tokenizer is not None and not data.tokenizer.is_dir():
            fix += f"\n         after: pretrain tokenizer {text} --kind wordpiece --vocab-size N --out {tokenizer}"
        raise ShardError("there are no shards here yet", str(corpus.shards), fix)


def check_tokenizer(recipe: Recipe, made_with: TokenizerInfo) -> None:
    """Hold the recipe's tokenizer, where it is on this machine, against the one the shards were made with.

    Raises:
        TokenizerError: They differ, so the ids in the shards mean other words.
    """
    given = recipe.data.tokenizer
    if given is not None and given.is_dir() and load_tokenizer(given).info.sha256 != made_with.sha256:
        raise TokenizerError(
            f"the tokenizer {given} is not the one the shards were made with",
            "data.tokenizer",
            f"use {recipe.data.tokenizer_folder}, or prepare the shards again with {given}",
        )
