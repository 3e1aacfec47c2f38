"""BERT learns which sentence comes next and ALBERT in which order two stand, beside their masked tokens."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jobs
import plain_jobs
import pytest
import tiny
from ranks import kill_ranks_when, run_ranks

from launcher import cli
from launcher.engine.records import read_metrics
from launcher.objectives.base import IGNORE_INDEX

KINDS = ("nsp", "sop")


@pytest.fixture(scope="session")
def sentence_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a tiny corpus of sentences."""
    return tiny.make_shards(tmp_path_factory.mktemp("sentences"), sentences=True)


@cache
def plain_losses(kind: str, shards: Path, folder: Path) -> list[float]:
    path = tiny.write_recipe(folder / f"plain-{kind}.yaml", tiny.pair_tree(kind, shards, folder))
    return run_ranks(plain_jobs.plain_losses, 1, str(path))[0]


def lines_of(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The steps of a run, and its validations."""
    lines = read_metrics(run / "metrics.jsonl")
    steps = [line for line in lines if "batch_digest" in line]
    return steps, [line for line in lines if line.get("event") == "evaluation"]


@pytest.mark.parametrize(
    ("stage", "ranks", "changes"),
    [
        (0, 1, {}),
        (0, 2, {}),
        (3, 2, {}),
        (3, 2, {"batch__micro_batch": 1}),
        (2, 2, {"model__chunked_loss": "on"}),
    ],
    ids=["one rank", "stage 0", "stage 3", "stage 3, sample by sample", "chunked"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_both_losses_equal_those_of_the_models_own_class_in_a_plain_loop(
    kind: str,
    stage: int,
    ranks: int,
    changes: dict[str, Any],
    sentence_shards: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.pair_tree(kind, sentence_shards, tmp_path, **changes))
    codes = run_ranks(jobs.train, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(path)])
    assert codes == [0] * ranks
    steps, evaluations = lines_of(tmp_path / "tiny")
    both = [step["loss"] + step["pair_loss"] for step in steps]
    expected = plain_losses(kind, sentence_shards, tmp_path_factory.getbasetemp())
    assert len(both) == 20
    assert max(abs(a - b) for a, b in zip(both, expected, strict=True)) < 1e-5
    assert steps[0]["loss"] - steps[-1]["loss"] > 0.2, "a frozen model would agree with a frozen model"
    assert len({step["pair_loss"] for step in steps}) == 20
    assert all(0.0 <= step["pair_accuracy"] <= 1.0 for step in steps)
    for evaluation in evaluations:
        assert 0.0 < evaluation["pair_loss"] < 2.0
        assert 0.0 <= evaluation["pair_accuracy"] <= 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_exported_asked_shown_and_traced(
    kind: str, sentence_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny.pair_tree(kind, sentence_shards, tmp_path, train__num_steps=3, eval__prompts=["人民[MASK]院"])
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    assert run_ranks(jobs.train, 2, ["--ds_config", "zero3", "--recipe", str(path)]) == [0, 0]
    run = tmp_path / "tiny"
    config = json.loads((run / "export" / "config.json").read_text())
    assert config["architectures"] == [{"nsp": "BertForPreTraining", "sop": "AlbertForPreTraining"}[kind]]
    assert "pipeline_tag: fill-mask" in (run / "export" / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["fill", str(run), "人民[MASK]院", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["blanks"]) == 1

    assert cli.main(["show", str(sentence_shards), "--recipe", str(path), "--samples", "40", "--json"]) == 0
    samples = json.loads(capsys.readouterr().out)["samples"]
    labels = {sample["pair_label"] for sample in samples}
    assert {0, 1} <= labels <= {0, 1, IGNORE_INDEX}
    for sample in samples:
        others = len(set(sample["documents"])) > 1
        assert others == (kind == "nsp" and sample["pair_label"] == 1)
        assert set(sample["token_type_ids"]) == {0, 1}
    assert cli.main(["show", str(sentence_shards), "--recipe", str(path), "--samples", "9"]) == 0
    shown = capsys.readouterr().out
    assert f"sentence_pairs {kind}, as it was written)" in shown
    assert f"sentence_pairs {kind}, changed)" in shown

    assert cli.main(["trace", str(run), "--step", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["digest"].startswith("the digest is the run's")
    piece = told["sequences"][0]["pieces"][1]
    assert cli.main(["trace", str(run), "--document", piece["document"], "--json"]) == 0
    assert 2 in json.loads(capsys.readouterr().out)[0]["steps"]


def test_a_run_goes_on_from_its_checkpoint_and_from_its_export(sentence_shards: Path, tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.pair_tree("nsp", sentence_shards, tmp_path / "whole"))
    run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(path)])
    tree = tiny.pair_tree("nsp", sentence_shards, tmp_path, checkpoint__every_steps=7)
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    arguments = ["--ds_config", "zero3", "--recipe", str(path)]
    saved = tmp_path / "tiny" / "checkpoints" / "step-00000007"
    kill_ranks_when(saved.is_dir, jobs.train, 2, arguments)
    assert run_ranks(jobs.train, 2, arguments) == [0, 0]
    whole, resumed = (lines_of(folder / "tiny")[0] for folder in (tmp_path / "whole", tmp_path))
    assert [step["batch_digest"] for step in resumed] == [step["batch_digest"] for step in whole]
    for name in ("loss", "pair_loss"):
        assert max(abs(a[name] - b[name]) for a, b in zip(whole, resumed, strict=True)) < 1e-5
    tree = tiny.pair_tree("nsp", sentence_shards, tmp_path, name="more", train__num_steps=1)
    tree["model"] = {"continue_from": str(tmp_path / "tiny" / "export")}
    path = tiny.write_recipe(tmp_path / "more.yaml", tree)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(path)]) == [0]
    before, after = lines_of(tmp_path / "tiny")[1][-1], lines_of(tmp_path / "more")[1][0]
    for name in ("loss", "pair_loss"):
        assert after[name] == pytest.approx(before[name], abs=1e-5)


def test_runs_without_pairs_say_nothing_of_them(sentence_shards: Path, tmp_path: Path) -> None:
    tree = tiny.recipe_tree("mlm", sentence_shards, tmp_path, train__num_steps=1)
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(path)]) == [0]
    assert not any("pair_loss" in line for line in read_metrics(tmp_path / "tiny" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        (
            "nsp",
            {"model": tiny.PAIR_MODELS["sop"]},
            "ModelError: albert cannot be trained with an objective for masked tokens and the next sentence\n"
            "  where: objective.sentence_pairs\n"
            "  fix:   choose a family that can, such as bert, ernie, megatron-bert, or another objective",
        ),
        (
            "sop",
            {"model": tiny.PAIR_MODELS["nsp"]},
            "ModelError: bert cannot be trained with an objective for masked tokens and the order of sentences\n"
            "  where: objective.sentence_pairs\n"
            "  fix:   choose a family that can, such as albert, or another objective",
        ),
        (
            "nsp",
            {"data__packing": "bestfit"},
            "RecipeError: sentence pairs are made of the sentences of one document each: packing bestfit has nothing "
            "to do there\n"
            "  where: data.packing\n"
            "  fix:   delete it from the recipe (concat is the default), or use objective.sentence_pairs=none",
        ),
        ("sop", {"data__documents": "apart"}, "documents apart has nothing to do there\n  where: data.documents"),
    ],
    ids=["nsp of albert", "sop of bert", "packed", "apart"],
)
def test_what_cannot_be_is_refused_before_the_first_step(
    kind: str, changes: dict[str, Any], expected: str, sentence_shards: Path, tmp_path: Path
) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.pair_tree(kind, sentence_shards, tmp_path, **changes))
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero0", "--recipe", str(path)])
    assert code == 2
    assert expected in told
    assert not (tmp_path / "tiny").exists()


def test_shards_without_sentences_are_refused(shards: Path, tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.pair_tree("nsp", shards, tmp_path))
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero0", "--recipe", str(path)])
    assert code == 2
    assert "prepare them again with --sentences" in told
