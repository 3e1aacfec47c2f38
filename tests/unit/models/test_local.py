"""Models are read from folders: nothing asks the hub, and no code that lies in a folder is run."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from launcher.config.model import ModelConfig
from launcher.config.places import ROOT
from launcher.errors import ModelError
from launcher.models.local import local, read_config


def calls_of(name: str) -> list[tuple[Path, ast.Call]]:
    """Every call of a method of that name in the program."""
    return [
        (path, node)
        for path in sorted((ROOT / "launcher").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]


def test_whatever_could_fetch_is_told_to_stay_here() -> None:
    calls = calls_of("from_pretrained")
    assert calls
    for path, call in calls:
        spread = [ast.unparse(word.value) for word in call.keywords if word.arg is None]
        assert [text.partition("(")[0] for text in spread] == ["local"], f"{path}:{call.lineno}"
    assert local(Path("nowhere")) == {"local_files_only": True, "trust_remote_code": False}
    (hub,) = calls_of("load_dataset")  # for words that begin with hub: alone
    assert hub[0].name == "hub.py"
    for name in ("hf_hub_download", "snapshot_download", "urlopen", "list_repo_files"):
        assert calls_of(name) == []


@pytest.mark.parametrize("trusted", [(), ("configuration_mine.py",), ("numbers.py", "other.py")])
def test_code_in_a_models_folder_that_is_not_all_named_is_refused_and_not_run(
    trusted: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "configuration_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom .numbers import x\n")
    (tmp_path / "numbers.py").write_text("x = 1\n")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        read_config(tmp_path, trusted)
    assert "model.trusted_code=[configuration_mine.py, numbers.py]" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_code_of_the_hub_cannot_be_named(tmp_path: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "someone/repository--configuration_mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "configuration_mine.py").write_text("")
    assert local(tmp_path, ["configuration_mine.py"])["trust_remote_code"] is False
    for names in (["someone/repository--configuration_mine.py"], ["mine.txt"]):
        with pytest.raises(ValidationError, match="names of Python files"):
            ModelConfig(continue_from=tmp_path, trusted_code=tuple(names))


def test_a_family_that_transformers_has_is_read_without_the_code_beside_it(tmp_path: Path) -> None:
    (tmp_path / "configuration_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = {"model_type": "gpt2", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path).model_type == "gpt2"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["{", '{"model_type": "no-such-family"}'])
def test_a_configuration_that_cannot_be_read_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="its configuration cannot be read"):
        read_config(tmp_path)


def test_a_name_that_is_no_folder_is_not_looked_up(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        read_config(Path("openai-community/gpt2"))
