"""`pretrain trace` on what a run leaves behind: which steps saw a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from token_shards import random_documents, text_hash, write_shards

from launcher import tracing
from launcher.config.loading import check_recipe, resolved_yaml
from launcher.feed.data import open_data
from launcher.samples.digest import combine, digest

GLOBAL_BATCH = 24
DOCUMENTS = random_documents(60, 15, seed=3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "law"
    write_shards(folder, DOCUMENTS, random_documents(6, 15, seed=4))
    return folder


def take_steps(run: Path, data: dict[str, Any], first: int, last: int) -> None:
    """Leave in a run's folder what training leaves of the steps from `first` to `last`, taken with this recipe."""
    tree = tiny.recipe_tree("mlm", Path("unused"), run.parent, batch__global_batch=GLOBAL_BATCH)
    recipe = check_recipe({**tree, "data": {"seq_len": 24, **data}}, "a test")
    opened = open_data(recipe)
    run.mkdir(exist_ok=True)
    (run / "recipe.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
    with (run / "metrics.jsonl").open("a") as log:
        for step in range(first, last):
            positions = np.arange(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH, dtype=np.int64)
            made = digest(positions, opened.objective.batch(opened.train.fetch(positions)))
            log.write(json.dumps({"step": step + 1, "batch_digest": f"{combine(made):016x}"}) + "\n")


@pytest.mark.parametrize("packing", ["concat", "bestfit", "pad"])
def test_the_steps_that_an_exclude_list_hid_a_document_from_did_not_see_it(
    shards: Path, tmp_path: Path, packing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, takedown = tmp_path / "run", tmp_path / "takedown.txt"
    hidden, other = text_hash(DOCUMENTS[7]), text_hash(DOCUMENTS[30])
    takedown.write_text(f"{hidden}\n")
    data = {"shards": str(shards), "packing": packing}
    take_steps(run, data, 0, 12)
    (before,) = tracing.trace_document(run, hidden)
    assert before["hidden_in"] == []
    assert min(before["steps"]) <= 6 < max(before["steps"])
    (run / "metrics.jsonl").unlink()
    take_steps(run, data, 0, 6)
    take_steps(run, {**data, "exclude": str(takedown)}, 6, 12)
    (after,) = tracing.trace_document(run, hidden)
    assert after["steps"] == [step for step in before["steps"] if step <= 6]
    assert after["hidden_in"] == [step for step in before["steps"] if step > 6]
    assert tracing.trace_document(run, other)[0]["hidden_in"] == []
    tracing.print_document(run, hidden, as_json=False)
    told = capsys.readouterr().out
    assert f"  steps: {', '.join(map(str, after['steps']))}\n" in told
    assert f"hidden by the exclude list in steps: {', '.join(map(str, after['hidden_in']))}\n" in told


def test_a_step_from_before_the_exclude_list_shows_what_it_saw(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, takedown = tmp_path / "run", tmp_path / "takedown.txt"
    hidden = text_hash(DOCUMENTS[7])
    takedown.write_text(f"{hidden}\n")
    take_steps(run, {"shards": str(shards)}, 0, 6)
    seen = tracing.trace_document(run, hidden)[0]["steps"]
    take_steps(run, {"shards": str(shards), "exclude": str(takedown)}, 6, 12)
    monkeypatch.setattr(tracing, "_tokenizer", lambda run: Digits())
    hidden_in = tracing.trace_document(run, hidden)[0]["hidden_in"]
    for steps, excluded in ((seen, False), (hidden_in, True)):
        for step in steps:
            sequences, verdict = tracing.trace_step(run, step)
            assert verdict.startswith("the digest is the run's")
            assert ("before there was an exclude list" in verdict) is not excluded
            (piece, *_) = [piece for each in sequences for piece in each.pieces if piece.text_hash == hidden]
            assert piece.excluded is excluded
    takedown.write_text(f"{hidden}\n{text_hash(DOCUMENTS[30])}\n")
    other = [step for step in tracing.trace_document(run, text_hash(DOCUMENTS[30]))[0]["steps"] if step > 6]
    assert "WARNING: the digest is" in tracing.trace_step(run, other[0])[1]


class Digits:
    """In place of a tokenizer: ids as they are."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))
