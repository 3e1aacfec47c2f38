"""Benchmarks take their corpus from the command line, print JSON alone, and say what they leave out."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import tiny

ROOT = Path(__file__).resolve().parents[2]
WITH_CORPUS = ("cold", "corruption", "digests", "feeding", "masking", "open_order", "prepare", "serving")


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", num_documents=300)


def test_shards_are_of_the_corpus_that_is_given(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.made_shards import END, documents_of, make_shards, make_shards_of_size
    from launcher.shards.reader import open_split

    documents = documents_of(corpus, 30)
    assert len(documents.lengths_D) == 300
    assert documents.lengths_D.max() < 60
    given = np.split(documents.tokens_N, np.cumsum(documents.lengths_D)[:-1])
    make_shards(tmp_path / "twice", 700, 30, documents)
    twice = open_split(tmp_path / "twice", "train")
    assert twice.num_documents == 700
    for number in (0, 1, 299, 300, 601, 699):
        assert twice.document(number).tolist() == given[number % 300].tolist()
        assert twice.document(number)[-1] == END
    make_shards_of_size(tmp_path / "sized", 50_000, 30, corpus)
    assert abs(open_split(tmp_path / "sized", "train").num_tokens / 50_000 - 1) < 0.05


@pytest.mark.parametrize("name", WITH_CORPUS)
def test_a_corpus_that_is_not_there_is_told_before_anything_is_made(name: str, tmp_path: Path) -> None:
    done = run(name, "--corpus", tmp_path / "nothing.jsonl")
    assert done.returncode == 2
    assert f"there is no file {tmp_path / 'nothing.jsonl'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_corruption_of_a_given_corpus_prints_one_object(corpus: Path) -> None:
    done = run("corruption", "--corpus", corpus, "--damages", "40", "--json")
    told = {result["name"]: result["value"] for result in json.loads(done.stdout)["results"]}
    assert told["found by pretrain verify"] == told["found by reading"] == 40
    assert told["wrong tokens served"] == 0 < told["wrong or missing tokens of np.memmap"]


def test_a_peer_that_is_not_installed_is_left_out_with_the_way_to_install_it(corpus: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    arguments = ("--corpus", corpus, "--documents", "2000", "--rounds", "1", "--peer-python", python, "--json")
    done = run("open_order", *arguments)
    assert done.returncode == 0
    names = [result["name"] for result in json.loads(done.stdout)["results"]]
    assert names == [f"2,000 documents, ours: {field}" for field in ("cpu_s", "memory_mb", "index_bytes")]
    assert f"left out: megatron-core is not installed for {python}" in done.stderr
    assert "benchmarks/requirements-peers.txt" in done.stderr
    assert "Traceback" not in done.stderr
    absent = run("serving", "--peer-python", tmp_path / "absent")
    assert absent.returncode == 2
    assert "benchmarks/requirements-peers.txt" in absent.stderr
