"""A mistake of the user's: one typed error, exit code 2, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
from ranks import run_ranks

TABLE: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "sequence longer than the model's positions": (
        {"data__seq_len": 100},
        [],
        ["ModelError: sequences of 100 tokens are longer than the model's 64 positions", "data.seq_len=64"],
    ),
    "batch that does not divide": (
        {"batch__global_batch": 9, "batch__micro_batch": 2},
        [],
        ["BatchShapeError: 9 samples per step cannot be cut into passes of 2", "use 8 or 10"],
    ),
    "unknown family": ({"model__family": "gpt22"}, [], ["no model family 'gpt22'", "did you mean 'gpt2'?"]),
    "field the family does not have": (
        {"model__config": {"layer_type": []}},
        [],
        ["modernbert has no configuration field 'layer_type'", "did you mean 'layer_types'?"],
    ),
    "masked objective on a decoder": (
        {"model": {"family": "gpt2"}},
        [],
        ["gpt2 cannot be trained with an objective for masked language modelling", "bert, roberta, modernbert"],
    ),
    "next tokens on an encoder": (
        {"objective": {"kind": "clm"}, "model": {"family": "bert"}},
        [],
        ["sees the tokens on its right", "use mlm, or a decoder"],
    ),
    "next tokens on an encoder-decoder": (
        {"objective": {"kind": "clm"}, "model": {"family": "t5"}},
        [],
        ["t5 cannot be trained with an objective for next-token prediction", "gpt2, llama, qwen3"],
    ),
    "a decoder's text longer than its positions": (
        {
            "objective": {"kind": "span", "density": 0.6},
            "model": {"family": "bart", "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 24},
        },
        [],
        ["tokens are longer than the model's 24 positions", "what a decoder writes counts too"],
    ),
    "more spans than sentinels": (
        {"data__seq_len": 4000, "objective": {"kind": "span"}, "model": {"family": "t5"}},
        [],
        ["needs 222 sentinel tokens, and the tokenizer has 100", "longer spans or a shorter sequence"],
    ),
    "documents apart where a state goes on": (
        {
            "data__documents": "apart",
            "objective": {"kind": "clm"},
            "model": {"family": "mamba", "hidden_size": 32, "num_hidden_layers": 1, "attention": "eager"},
        },
        [],
        ["layers of mamba carry a state from document to document", "use data.documents=joined"],
    ),
    "experts of a dense model": (
        {"objective": {"kind": "clm"}, "model": {"family": "gpt2", "experts": "grouped_mm"}},
        [],
        ["gpt2 has no experts", "model.experts"],
    ),
    "words that the shards do not tell": (
        {"objective": {"kind": "mlm", "unit": "word"}},
        [],
        ["which tokens continue a word", "prepare them again with --words"],
    ),
    "longer than positions that begin behind the padding": (
        {"model": {"family": "roberta", "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 24}},
        [],
        ["longer than the model's 23 positions"],
    ),
    "heads that do not divide": (
        {"model__hidden_size": 33},
        [],
        ["a width of 33 cannot be cut", "use 32 or 34"],
    ),
    "continued from nowhere": ({"model": {"continue_from": "nowhere"}}, [], ["nowhere holds no config.json"]),
    "no shards": (
        {"data": {"shards": "no where", "seq_len": 24, "corpus": ["a b.jsonl"], "tokenizer": "tok"}},
        [],
        ["ShardError", "pretrain prepare 'a b.jsonl' --tokenizer tok --out 'no where'"],
    ),
    "unknown key": ({}, ["optim.lrr=1"], ["RecipeError: unknown key optim.lrr", "did you mean 'lr'?"]),
    "unknown option": ({}, ["--ds-confg=x"], ["UsageError: unknown option --ds-confg=x"]),
    "unknown ds_config": ({}, ["--ds_config=zero9"], ["DsConfigError", "zero0, zero1, zero2"]),
}


@pytest.mark.parametrize("case", TABLE)
def test_a_mistake_is_told_and_leaves_nothing(case: str, shards: Path, tmp_path: Path) -> None:
    changes, words, messages = TABLE[case]
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("mlm", shards, tmp_path / "runs", **changes))
    arguments = ["--ds_config", "zero1", "--recipe", str(recipe), *words]
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, arguments)
    assert code == 2, told
    for message in messages:
        assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_that_is_not_the_shards_is_refused(shards: Path, tmp_path: Path) -> None:
    from launcher.prepare.tokenizer_training import train_tokenizer

    train_tokenizer(["天地玄黄，宇宙洪荒。"] * 3, "wordpiece", 130, tmp_path / "other")
    tree = tiny.recipe_tree("mlm", shards, tmp_path, data__tokenizer=str(tmp_path / "other"))
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero1", "--recipe", str(recipe)])
    assert code == 2
    assert "TokenizerError" in told
    assert "is not the one the shards were made with" in told


def test_missing_mask_token_is_told_before_the_first_step(tmp_path: Path) -> None:
    from rich.console import Console
    from tokenizers import Tokenizer, models, pre_tokenizers

    from launcher.prepare.build import build_shards
    from launcher.prepare.request import BuildRequest

    corpus = tiny.write_corpus(tmp_path / "corpus.jsonl", 40)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "第": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["</s>"])
    (tmp_path / "bare").mkdir()
    tokenizer.save(str(tmp_path / "bare" / "tokenizer.json"))
    request = BuildRequest(corpus=(str(corpus),), tokenizer=tmp_path / "bare", out=tmp_path / "shards", workers=1)
    build_shards(request, Console(quiet=True))
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("mlm", tmp_path / "shards", tmp_path))
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero1", "--recipe", str(recipe)])
    assert code == 2
    assert "ObjectiveError: the mlm objective needs the cls token" in told
