"""Recipes: what ships is sound, what is wrong is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher.config import places
from launcher.config.loading import (
    check_recipe,
    describe_fields,
    differences,
    fingerprint,
    flat,
    load_recipe,
    read_yaml,
    resolved_yaml,
)
from launcher.errors import RecipeError

SHIPPED = places.names("recipes", ".yaml")


def test_every_promised_recipe_ships() -> None:
    promised = {
        "law-bert-zh",
        "law-gpt-zh",
        "law-t5-zh",
        "bert-base-chinese",
        "gpt2",
        "llama-8b",
        "qwen3-moe",
        "t5-base",
    }
    assert promised <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_under_their_own_name_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name).recipe
    assert recipe.name == name
    path = tmp_path / "again.yaml"
    path.write_text(resolved_yaml(recipe), encoding="utf-8")
    assert check_recipe(read_yaml(path), "again") == recipe


def test_every_field_explains_itself() -> None:
    assert [name for name, meaning in describe_fields().items() if not meaning] == []


def test_a_field_that_several_objectives_have_is_explained_for_all_of_them() -> None:
    meanings = describe_fields()
    for kind in ("mlm", "clm", "span", "prefix", "mixture", "ul2"):
        assert f"`{kind}`:" in meanings["objective.kind"]
    assert meanings["objective.mask_share"].count("BERT,") == 1
    assert "weight" in meanings["objective.parts"]


@pytest.mark.parametrize(
    ("objective", "head", "predicted_share"),
    [
        ({"kind": "mlm", "mask_share": 0.3, "unit": "span"}, "masked", 0.3),
        ({"kind": "clm", "fim_share": 0.5}, "causal", 1.0),
        ({"kind": "span", "mode": "X"}, "seq2seq", 1.0),
        ({"kind": "prefix"}, "seq2seq", 1.0),
        ({"kind": "prefix", "head": "causal"}, "causal", 1.0),
        ({"kind": "ul2", "mode_tokens": [5, 6, 7]}, "seq2seq", 1.0),
        (
            {"kind": "mixture", "parts": [{"kind": "mlm", "weight": 3.0}, {"kind": "mlm", "mask_share": 0.55}]},
            "masked",
            0.25,
        ),
        ({"kind": "mixture", "parts": [{"kind": "clm"}, {"kind": "prefix", "head": "causal"}]}, "causal", 1.0),
    ],
)
def test_an_objective_says_what_model_it_needs_and_survives_a_round_trip(
    objective: dict[str, Any], head: str, predicted_share: float, tmp_path: Path
) -> None:
    recipe = check_recipe(tiny.recipe_tree("span", tmp_path, tmp_path, objective=objective), "a test")
    assert recipe.objective.head == head
    assert recipe.objective.predicted_share == pytest.approx(predicted_share)
    path = tmp_path / "again.yaml"
    path.write_text(resolved_yaml(recipe), encoding="utf-8")
    assert check_recipe(read_yaml(path), "again") == recipe
    assert fingerprint(check_recipe(read_yaml(path), "again")) == fingerprint(recipe)


def test_each_field_knows_where_it_came_from() -> None:
    loaded = load_recipe("law-gpt-zh", ["train.num_steps=50", "model.hidden_size=128", "optim.lr=2e-4"])
    assert (loaded.recipe.train.num_steps, loaded.recipe.model.hidden_size, loaded.recipe.optim.lr) == (50, 128, 2e-4)
    assert loaded.origin("train.num_steps") == loaded.origin("optim.lr") == "override"
    assert loaded.origin("data.seq_len").endswith("law-gpt-zh.yaml")
    assert loaded.origin("optim.eps") == "default"


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load_recipe("law-bert-zh").recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.num_step=5", "unknown key train.num_step"),
        ("train.num_step=5", "did you mean 'num_steps'?"),
        ("trian.num_steps=5", "did you mean 'train'?"),
        ("objective.mask_shar=0.2", "did you mean 'mask_share'?"),
        ("optim.lr=fast", "optim.lr: input should be a valid number, got 'fast'"),
        ("train.num_steps=2.5", "train.num_steps: input should be a valid integer"),
        ("batch.global_batch=0", "batch.global_batch: input should be greater than 0"),
        ("objective.mask_share=1.5", "objective.mask_share: input should be less than 1"),
        ("objective.kind=mlmm", "'mlm', 'clm', 'span', 'prefix', 'mixture', 'ul2'"),
        ("objective.unit=words", "objective.unit: input should be 'token', 'word', 'ngram' or 'span', got 'words'"),
        ("objective.whole_words=true", "unknown key objective.whole_words"),
        ("objective.max_ngram=0", "objective.max_ngram: input should be greater than or equal to 1"),
        ("objective={kind: clm, fim_share: 1.5}", "objective.fim_share: input should be less than or equal to 1"),
        ("objective={kind: mixture}", "objective.parts is missing"),
        ("objective={kind: mixture, parts: []}", "objective.parts: tuple should have at least 1 item"),
        ("objective={kind: mixture, parts: [{kind: span, weight: 0}]}", "objective.parts.0.weight: input should be"),
        ("objective={kind: mixture, parts: [{kind: span, densty: 0.1}]}", "objective.parts.0.densty: extra inputs"),
        ("objective={kind: mixture, parts: [{kind: ul2}]}", "'mlm', 'clm', 'span', 'prefix'"),
        (
            "objective={kind: mixture, parts: [{kind: span}, {kind: mlm}]}",
            "train one kind of model, these need several: span (seq2seq), mlm (masked)",
        ),
        (
            "objective.sentence_pairs=nspp",
            "objective.sentence_pairs: input should be 'none', 'nsp' or 'sop', got 'nspp'",
        ),
        (
            "objective={kind: mixture, parts: [{kind: mlm, sentence_pairs: nsp}]}",
            "objective.parts.0.sentence_pairs: value error, pairs are samples of another shape",
        ),
        ("objective={kind: clm, sentence_pairs: nsp}", "unknown key objective.sentence_pairs"),
        ("objective={kind: prefix, head: causal, mode: S}", "a mode token begins what an encoder reads"),
        ("objective={kind: ul2, mode_tokens: [1, 2]}", "objective.mode_tokens"),
        ("train.precision=bf17", "train.precision"),
        ("name=a/b", "name: string should match pattern"),
        ("optim.betas=[0.9,1.0]", "optim.betas.1: input should be less than 1"),
        ("optim.lr=.inf", "optim.lr: input should be a finite number"),
        ("num_steps", "'num_steps' is not an override"),
        ("name.x=1", "'name' is a value, not a section"),
    ],
)
def test_a_wrong_override_is_told_with_its_field(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("law-bert-zh", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "field"),
    [("data.packing=bestfit", "packing"), ("data.packing=pad", "packing"), ("data.documents=apart", "documents")],
)
def test_pairs_are_not_packed(override: str, field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("law-bert-zh", ["objective.sentence_pairs=sop", override])
    assert f"where: data.{field}" in str(caught.value)
    assert "fix:   delete it from the recipe" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", "this is not YAML"),
        ("- a\n- b\n", "a recipe is a YAML mapping"),
        ("name: x\n", "data is missing; objective is missing"),
        ("name: x\nmodle: {}\n", "did you mean 'model'?"),
    ],
)
def test_a_wrong_file_is_told_with_its_name(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert message in str(caught.value)
    assert "bad.yaml" in str(caught.value)


def test_a_recipe_that_does_not_exist_gets_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'law-bert-zh'"):
        load_recipe("law-brt-zh")


def test_a_recipe_that_cannot_be_looked_at_is_told_with_why(tmp_path: Path) -> None:
    (loop := tmp_path / "loop.yaml").symlink_to(loop)
    for name, why in ((str(loop), "Too many levels of symbolic links"), ("x" * 300, "File name too long")):
        with pytest.raises(RecipeError, match=rf"the recipe cannot be read: .+{why}"):
            load_recipe(name)


def test_what_a_resumed_run_may_change_does_not_change_its_fingerprint() -> None:
    base = load_recipe("law-bert-zh").recipe
    longer = load_recipe(
        "law-bert-zh", ["train.num_steps=9", "batch.micro_batch=2", "eval.every_steps=3", "runs=x"]
    ).recipe
    other = load_recipe("law-bert-zh", ["optim.lr=0.1", "train.seed=3"]).recipe
    assert fingerprint(base) == fingerprint(longer)
    assert differences(base, longer) == []
    assert fingerprint(base) != fingerprint(other)
    assert differences(base, other) == ["optim.lr: 0.001 → 0.1", "train.seed: 0 → 3"]


def test_words_that_yaml_1_1_takes_for_booleans_are_words() -> None:
    loaded = load_recipe("law-bert-zh", ["name=off", "model.activation_checkpointing=true"])
    assert loaded.recipe.name == "off"
    assert loaded.recipe.model.activation_checkpointing is True


def test_numbers_without_a_dot_are_numbers_in_files_too(tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("clm", tmp_path, tmp_path))
    path.write_text(path.read_text().replace("lr: 0.003", "lr: 3e-3"))
    assert flat(load_recipe(str(path)).recipe)["optim.lr"] == 3e-3


def test_a_batch_may_be_given_in_tokens() -> None:
    seq_len = load_recipe("law-bert-zh").recipe.data.seq_len
    recipe = load_recipe("law-bert-zh", [f"batch.global_batch={12 * seq_len} tokens"]).recipe
    assert recipe.batch.global_batch == 12
    assert "global_batch: 12\n" in resolved_yaml(recipe)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("{more} tokens", "use {whole} tokens or {next} tokens"),
        ("5 tokens", "use {seq_len} tokens"),
        ("many tokens", "batch.global_batch"),
        ("-64 tokens", "batch.global_batch"),
    ],
)
def test_a_batch_of_tokens_that_is_no_whole_number_of_sequences_is_told_the_nearest(tokens: str, message: str) -> None:
    seq_len = load_recipe("law-bert-zh").recipe.data.seq_len
    numbers = {"seq_len": seq_len, "more": 8 * seq_len + 1, "whole": 8 * seq_len, "next": 9 * seq_len}
    with pytest.raises(RecipeError) as told:
        load_recipe("law-bert-zh", [f"batch.global_batch={tokens.format(**numbers)}"])
    assert message.format(**numbers) in str(told.value)


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        ("[{step: 3, global_batch: 16}]", "the first stage of warmup begins at step: 0"),
        ("[{step: 0, global_batch: 4}]", "the last stage of warmup is global_batch, 16, not 4"),
        ("[{step: 0, global_batch: 16}, {step: 5, global_batch: 16}]", "grows from stage to stage, not 16 → 16"),
        ("[{step: 0, global_batch: 4}, {global_batch: 16}]", "either at a step or at a number of samples"),
        ("[{step: 0, global_batch: 4}, {step: 1, samples: 4, global_batch: 16}]", "either at a step or at a number"),
        (
            "[{step: 0, global_batch: 4}, {step: 5, global_batch: 8}, {samples: 20, global_batch: 16}]",
            r"begin one after another, not at steps \[0, 5, 5\]",
        ),
        ("[{step: 0, global_batch: 5 tokens}]", "use 128 tokens"),
        ("[{step: 0, global_batch: 4, until: 5}]", "extra inputs are not permitted"),
    ],
)
def test_a_warm_up_of_the_batch_that_makes_no_sense_is_refused(warmup: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("law-bert-zh", [f"batch.warmup={warmup}", "batch.global_batch=16"])


def test_a_warm_up_may_be_given_in_tokens() -> None:
    words = ["batch.global_batch=16", "batch.warmup=[{step: 0, global_batch: 512 tokens}, {step: 9, global_batch: 16}]"]
    assert load_recipe("law-bert-zh", words).recipe.batch.warmup[0].global_batch == 4


def test_a_warm_up_may_not_be_changed_by_a_run_that_goes_on() -> None:
    words = ["batch.warmup=[{step: 0, global_batch: 4}, {step: 9, global_batch: 16}]", "batch.micro_batch=auto"]
    before, after = (load_recipe("law-bert-zh", ["batch.global_batch=16", *more]).recipe for more in ([], words))
    assert [line.partition(":")[0] for line in differences(before, after)] == ["batch.warmup"]


DECODER = ["objective.kind=clm", "model.family=llama", "model.sequence_parallel=4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective.kind=mlm"], "decoders only"),
        (["data.seq_len=126"], "use 124 or 128"),
        (["data.documents=apart"], "use data.documents=joined, or data.packing=pad; or model.sequence_parallel=1"),
        (["data.exclude=takedown.txt"], "cannot hide documents"),
        (["model.attention=eager"], "use model.attention=sdpa"),
        (["model.expert_parallel=2"], "either experts or sequences"),
    ],
)
def test_sequences_that_cannot_be_shared_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("law-gpt-zh", [*DECODER, *words])
    assert load_recipe("law-gpt-zh", DECODER).recipe.model.sequence_parallel == 4


@pytest.mark.parametrize("value", ["auot", "0", "-2", "1.5", "true"])
def test_a_micro_batch_that_is_neither_a_number_nor_auto_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match=r"batch\.micro_batch: value error, a number of sequences from 1 on, or auto"):
        load_recipe("law-bert-zh", [f"batch.micro_batch={value}"])
