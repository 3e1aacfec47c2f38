"""A run over several corpora keeps its digests through other ranks and other weights; its text can be traced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
from ranks import run_ranks

from launcher import tracing
from launcher.cli import main
from launcher.engine.records import read_metrics
from launcher.errors import ShardError, TokenizerError, UsageError
from launcher.prepare.dedupe import text_digest
from launcher.shards.identity import open_tokenizer


def tree_of(shards: Path, runs: Path, name: str, steps: int) -> dict[str, Any]:
    tree = tiny.recipe_tree("mlm", shards, runs, name=name, train__num_steps=steps, checkpoint__every_steps=4)
    other = shards.parent / "other"
    if not other.exists():
        shutil.copytree(shards, other)
    tree["data"] = {
        "seq_len": 24,
        "mixture": {"law": {"shards": str(shards), "weight": 0.75}, "wiki": {"shards": str(other), "weight": 0.25}},
    }
    return tree


def digests(run: Path) -> dict[int, str]:
    return {x["step"]: x["batch_digest"] for x in read_metrics(run / "metrics.jsonl") if "batch_digest" in x}


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps on two ranks, then other weights and a third corpus on one."""
    folder = tmp_path_factory.mktemp("mixed")
    tree = tree_of(shards, folder, "mixed", 4)
    run_ranks(jobs.train, 2, ["--ds_config", "zero2", "--recipe", str(tiny.write_recipe(folder / "a.yaml", tree))])
    tree = tree_of(shards, folder, "mixed", 8)
    tree["data"]["mixture"]["late"] = {"shards": str(shards), "weight": 0}
    tree["data"]["changes"] = [{"step": 4, "weights": {"law": 0.25, "late": 0.5}}]
    arguments = ["--ds_config", "zero3", "--recipe", str(tiny.write_recipe(folder / "b.yaml", tree))]
    assert run_ranks(jobs.train, 1, arguments) == [0]
    return folder / "mixed"


def test_a_run_that_was_changed_on_the_way_saw_what_an_uninterrupted_one_sees(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    tree = tree_of(shards, tmp_path, "whole", 8)
    tree["data"]["mixture"]["late"] = {"shards": str(shards), "weight": 0}
    tree["data"]["changes"] = [{"step": 4, "weights": {"law": 0.25, "late": 0.5}}]
    arguments = ["--ds_config", "zero1", "--recipe", str(tiny.write_recipe(tmp_path / "c.yaml", tree))]
    run_ranks(jobs.train, 2, arguments)
    assert digests(run) == digests(tmp_path / "whole")
    state = json.loads((run / "checkpoints" / "step-00000008" / "state.json").read_text())
    assert sum(state["cursor"]["consumed"].values()) == state["cursor"]["position"] == 64


def test_weights_of_the_past_cannot_be_changed(run: Path, shards: Path) -> None:
    tree = tree_of(shards, run.parent, "mixed", 12)
    tree["data"]["mixture"]["law"]["weight"] = 0.5
    path = tiny.write_recipe(run.parent / "d.yaml", tree)
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero3", "--recipe", str(path)])
    assert code == 2
    assert "another data order" in told


def test_every_sequence_of_a_step_is_named_and_its_digest_is_the_runs(run: Path) -> None:
    tokenizer, lines = open_tokenizer(run / "tokenizer" / "tokenizer.json"), {}
    for step in (1, 4, 5, 8):
        sequences, verdict = tracing.trace_step(run, step)
        assert len(sequences) == 8
        assert verdict.startswith("the digest is the run's")
        for sequence in sequences:
            assert sum(piece.num_tokens for piece in sequence.pieces) <= 22
            for piece in sequence.pieces:
                file, _, number = piece.document.rpartition(":")
                lines.setdefault(file, Path(file).read_text(encoding="utf-8").splitlines())
                text = json.loads(lines[file][int(number) - 1])["completion"]
                assert piece.text_hash == text_digest(text).hex()
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                assert piece.text == tokenizer.decode(ids[piece.first_token :][: piece.num_tokens])
        assert any(piece.text for piece in sequence.pieces)  # one that holds the end of a document alone has none
    assert {sequence.corpus for sequence in tracing.trace_step(run, 8)[0]} <= {"law", "wiki", "late"}


def test_a_document_knows_the_steps_that_saw_it(run: Path) -> None:
    sequences, _ = tracing.trace_step(run, 6)
    piece = sequences[3].pieces[0]
    for name in (piece.document, piece.text_hash):
        found = tracing.trace_document(run, name)
        mine = [entry for entry in found if entry["corpus"] == sequences[3].corpus]
        assert 6 in mine[0]["steps"]
        assert mine[0]["text_hash"] == piece.text_hash
    for entry in found:
        for step in range(1, 9):
            held = any(
                p.text_hash == piece.text_hash and s.corpus == entry["corpus"]
                for s in tracing.trace_step(run, step)[0]
                for p in s.pieces
            )
            assert held == (step in entry["steps"])


def test_what_cannot_be_traced_is_told(run: Path) -> None:
    with pytest.raises(UsageError, match="has come to step 8"):
        tracing.trace_step(run, 9)
    with pytest.raises(UsageError, match="names no document"):
        tracing.trace_document(run, "the first")
    with pytest.raises(ShardError, match="no document of the run's corpora"):
        tracing.trace_document(run, "nothing.jsonl:1")


def test_lines_that_a_killed_run_left_half_written_hide_no_step(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    whole = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    others = b'null\n[1]\n{"step": "x", "batch_digest": 7}\n{"event": "left_out"}\n\xff\xfe\n'
    (copy / "metrics.jsonl").write_bytes(others + "".join(whole).encode() + b'{"step": 9, "batch_di')
    assert tracing.trace_step(copy, 8) == tracing.trace_step(run, 8)
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"the tokenizer cannot be read[\s\S]*restore the file"):
        tracing.trace_step(copy, 8)


def test_the_commands_print_for_people_and_for_scripts(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", str(run), "--step", "2"]) == 0
    assert "the digest is the run's" in capsys.readouterr().out
    assert main(["trace", str(run), "--step", "2", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["sequences"][0]["pieces"][0]
    assert main(["trace", str(run), "--document", first["document"], "--json"]) == 0
    assert any(2 in entry["steps"] for entry in json.loads(capsys.readouterr().out))
    assert main(["trace", str(run), "--document", first["document"]]) == 0
    assert "steps: " in capsys.readouterr().out
    assert main(["show", str(shards), "--samples", "1"]) == 0
    shown = capsys.readouterr().out
    assert "document 0: " in shown
    assert "⟦" in shown
    assert main(["show", str(shards), "--json", "--recipe", "law-gpt-zh", "--split", "validation"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["documents"]) == len(told["samples"]) == 2
    assert main(["verify", str(shards)]) == 0
    capsys.readouterr()


def test_verify_names_file_and_block_on_stderr_and_nothing_else(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    path = folder / "train-00000.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert main(["verify", str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"{path}: the bytes are not those that were written: block 0 (bytes 0 on)\n"
    assert main(["verify", str(folder), "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 1
