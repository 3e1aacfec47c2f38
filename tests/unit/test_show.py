"""`pretrain show`: what is read, what is predicted, and what turns it into an exercise, each in its colour."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.text import Text
from tokenizers import Tokenizer

from launcher.cli import main
from launcher.config.loading import load_recipe
from launcher.errors import TokenizerError, UsageError
from launcher.feed.data import open_data
from launcher.prepare.build import build_shards
from launcher.prepare.request import BuildRequest
from launcher.prepare.tokenizer import load_tokenizer
from launcher.show import COLOURED, _samples, show


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shown")
    tiny.make_shards(made)
    return made


def test_json_tells_what_went_wrong_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = Path(shutil.copytree(folder / "shards", tmp_path / "shards"))
    path = shards / "train-00000.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert main(["show", str(shards), "--json"]) == 2
    told = capsys.readouterr()
    damage = "the bytes are not those that were written: block 0 (bytes 0 on)"
    assert json.loads(told.out) == {"folder": str(shards), "problems": [f"{path}: {damage}"]}
    assert told.err.startswith(f"ShardError: {damage}\n  where: {path}\n")
    assert main(["show", str(shards)]) == 2
    assert capsys.readouterr().out == ""


def shown(folder: Path, model: str, section: dict[str, Any]) -> list[tuple[dict[str, Any], Text]]:
    """Twelve samples of the training split and how they are coloured."""
    tree = tiny.recipe_tree(model, folder / "shards", folder, objective=section)
    recipe = load_recipe(str(tiny.write_recipe(folder / "r.yaml", tree))).recipe
    handle = load_tokenizer(folder / "tokenizer")
    tokenizer: Tokenizer = handle.tokenizer
    samples = _samples(open_data(recipe), recipe.objective, "train", 0, 12, tokenizer)
    return [(sample, COLOURED[sample["head"]](sample, tokenizer, handle.info.special)) for sample in samples]


def parts(text: Text, style: str) -> list[str]:
    return [text.plain[span.start : span.end] for span in text.spans if span.style == style]


def test_what_a_decoder_predicts_is_green_and_its_prefix_is_not(folder: Path) -> None:
    for sample, text in shown(folder, "clm", {"kind": "prefix", "head": "causal"}):
        (green,) = parts(text, "green")
        assert text.plain.endswith(green)
        assert len(green) < len(text.plain)
        assert sample["objective"] == "prefix, head causal"
    for _, text in shown(folder, "clm", {"kind": "clm"}):
        (green,) = parts(text, "green")
        assert len(green) >= len(text.plain) - 5  # all but the first token


def test_sentinels_modes_and_targets_have_colours_of_their_own(folder: Path) -> None:
    modes = list(load_tokenizer(folder / "tokenizer").info.special.sentinels[-3:])
    seen = set()
    for sample, text in shown(folder, "span", {"kind": "ul2", "mode_tokens": modes}):
        assert parts(text, "bold magenta") == [f"<extra_id_{97 + 'RSX'.index(sample['objective'][-1])}>"]
        cyan = parts(text, "bold cyan")
        if sample["objective"].startswith("span"):
            assert cyan.count("<extra_id_0>") == 2  # where the span was, and before what it was
        else:
            assert cyan == []
        assert "→" in text.plain
        seen.add(sample["objective"])
    assert len(seen) > 2
    assert all(parts(text, "bold magenta") == [] for _, text in shown(folder, "span", {"kind": "span"}))


def test_masked_tokens_are_shown_as_what_they_hide(folder: Path) -> None:
    styles = {"bold red": 0, "bold yellow": 0, "bold green": 0}
    for _, text in shown(folder, "mlm", {"kind": "mlm", "mask_share": 0.6}):
        for style in styles:
            styles[style] += len(parts(text, style))
        assert "[MASK]" not in text.plain
    assert styles["bold red"] > styles["bold yellow"] > 0
    assert styles["bold green"] > 0


def test_a_tokenizer_that_is_gone_or_damaged_is_told(folder: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(folder / "shards", tmp_path / "shards")
    for damage in (lambda file: file.write_text("{"), Path.unlink):
        damage(shards / "tokenizer" / "tokenizer.json")
        with pytest.raises(TokenizerError, match=r"the tokenizer cannot be read[\s\S]*tokenizer\.json[\s\S]*restore"):
            show(shards, "train", 0, 1, 0, None, as_json=True)


def test_a_document_that_is_not_there_is_told_and_a_position_beyond_an_epoch_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"train has 1\d\d documents, none from 100000 on[\s\S]*--documents 0"):
        show(folder / "shards", "train", 100_000, 1, 1, None, as_json=False)
    show(folder / "shards", "train", 100_000, 0, 1, None, as_json=False)
    assert capsys.readouterr().out.startswith("sample at position 100000")


def test_a_split_without_documents_is_told(folder: Path, tmp_path: Path) -> None:
    corpus, tokenizer = str(folder / "corpus.jsonl"), folder / "tokenizer"
    build_shards(BuildRequest(corpus=(corpus,), tokenizer=tokenizer, out=tmp_path / "all", validation_share=0.0))
    with pytest.raises(UsageError, match=r"validation has no documents[\s\S]*--split train"):
        show(tmp_path / "all", "validation", 0, 1, 0, None, as_json=False)


def test_a_folder_of_a_mixture_is_shown_alone_and_what_it_excludes_is_hidden(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Path(shutil.copytree(folder / "shards", tmp_path / "1e5"))  # read as YAML, a number
    show(shards, "train", 0, 1, 0, None, as_json=True)
    (shown,) = json.loads(capsys.readouterr().out)["documents"]
    (tmp_path / "takedown.txt").write_text(shown["text_hash"])
    tree = tiny.recipe_tree("mlm", shards, tmp_path)
    mine = {"shards": str(shards), "weight": 0.5, "exclude": str(tmp_path / "takedown.txt")}
    tree["data"] = {"seq_len": 24, "mixture": {"a": mine, "b": {"shards": str(folder / "shards")}}}
    recipe = str(tiny.write_recipe(tmp_path / "r.yaml", tree))
    show(shards, "train", 0, 0, 600, recipe, as_json=True)
    samples = json.loads(capsys.readouterr().out)["samples"]
    touched = [sample for sample in samples if shown["origin"] in sample["documents"]]
    assert touched
    assert all(0 in sample["attention_mask"] for sample in touched)
