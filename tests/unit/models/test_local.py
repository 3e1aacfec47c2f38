"""Models are read from folders: nothing asks the hub, and no code that lies in a folder is run."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from launcher.config.model import ModelConfig
from launcher.config.places import ROOT
from launcher.errors import ModelError
from launcher.models.local import code_texts, local, misread_as, read_config, read_tokenizer


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
    for name in ("load_dataset_builder", "dataset_info"):  # for words that begin with hub: alone
        assert {path.name for path, _ in calls_of(name)} == {"hub.py"}
    for name in ("load_dataset", "hf_hub_download", "snapshot_download", "urlopen", "list_repo_files"):
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


@pytest.mark.parametrize("repository", ["someone/repository", "repository"])
def test_code_of_the_hub_cannot_be_named(repository: str, tmp_path: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": f"{repository}--configuration_mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "configuration_mine.py").write_text("")
    with pytest.raises(ModelError, match=r"repository--configuration_mine\.py cannot be named"):
        local(tmp_path, ["configuration_mine.py"])
    for name in (f"{repository}--configuration_mine.py", "mine.txt"):
        with pytest.raises(ValidationError, match="names of Python files"):
            ModelConfig(continue_from=tmp_path, trusted_code=(name,))


def mine(folder: Path, **config: object) -> None:
    """A model of one file of code, that is told of in config.json."""
    (folder / "configuration_mine.py").write_text(
        "from transformers import GPT2Config\nclass MineConfig(GPT2Config):\n    model_type = 'mine'\n"
    )
    told = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}, **config}
    (folder / "config.json").write_text(json.dumps(told))


def test_code_that_takes_the_place_of_generate_is_never_run(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=4)).save_pretrained(tmp_path)
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\ndef generate(model): ...\n"
    )
    AutoModelForCausalLM.from_pretrained(tmp_path, **local(tmp_path))
    for trusted in (["mine.py"], ["custom_generate/generate.py"]):
        with pytest.raises(ModelError, match=r"custom_generate/generate\.py cannot be named"):
            AutoModelForCausalLM.from_pretrained(tmp_path, **local(tmp_path, trusted))
    assert not (tmp_path / "ran").exists()


def test_the_configuration_that_transformers_would_read_is_the_one_whose_code_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Other: ...\n")
    mine(tmp_path, configuration_files=["config.4.0.0.json"])
    other = {"model_type": "mine", "auto_map": {"AutoConfig": "other.Other"}}
    (tmp_path / "config.4.0.0.json").write_text(json.dumps(other))
    with pytest.raises(ModelError, match=r"model.trusted_code=\[other.py\]"):
        read_config(tmp_path, ["configuration_mine.py"])
    # Of a part of a configuration, which a class may take for the whole of it.
    mine(tmp_path, text_config={"auto_map": {"AutoModelForCausalLM": "other.Other"}})
    with pytest.raises(ModelError, match=r"model.trusted_code=\[configuration_mine.py, other.py\]"):
        read_config(tmp_path, ["configuration_mine.py"])
    assert not (tmp_path / "ran").exists()


def test_a_name_that_is_no_file_of_the_folder_is_told_before_training(tmp_path: Path) -> None:
    mine(tmp_path)
    text = (tmp_path / "configuration_mine.py").read_text()
    assert code_texts(tmp_path, ["configuration_mine.py"]) == {"configuration_mine.py": text}
    assert code_texts(None, ()) == {}
    with pytest.raises(ModelError, match=r"cannot be read: No such file[\s\S]*did you mean 'configuration_mine.py'"):
        code_texts(tmp_path, ["configuration_mine.py", "configuration_mime.py"])
    (tmp_path / "configuration_mine.py").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="it is not UTF-8"):
        code_texts(tmp_path, ["configuration_mine.py"])
    (tmp_path / "configuration_mine.py").unlink()
    with pytest.raises(ModelError, match="put the code of the model back there"):
        code_texts(tmp_path, ["configuration_mine.py"])


def test_a_tokenizers_code_need_not_be_named(tmp_path: Path) -> None:
    names = {"AutoConfig": "configuration_mine.MineConfig", "AutoTokenizer": ["tokenization_mine.Mine", None]}
    mine(tmp_path, auto_map=names)
    assert read_config(tmp_path, ["configuration_mine.py"]).model_type == "mine"
    assert local(tmp_path, ["configuration_mine.py"])["trust_remote_code"] is True
    mine(tmp_path, model_type="gpt2", auto_map={"AutoConfig": None})
    assert local(tmp_path, ["configuration_mine.py"])["trust_remote_code"] is False  # there is nothing to trust


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


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gpt2", "modernbert", "t5"])
def test_a_tokenizer_that_was_trained_here_is_read_with_its_ids_whatever_the_model(
    model_type: str, tmp_path: Path
) -> None:
    from launcher.prepare.tokenizer_training import train_tokenizer

    texts = [f"第{number}条　公民的合法权益受法律保护；it's law {number}." for number in range(100)]
    handle = train_tokenizer(texts, "bpe", 480, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": model_type}))
    ids = read_tokenizer(tmp_path / "model")(texts, add_special_tokens=False)["input_ids"]
    assert misread_as(tmp_path / "model") == ("Qwen2Tokenizer" if model_type == "qwen2" else None)
    assert ids == [encoding.ids for encoding in handle.tokenizer.encode_batch(texts, add_special_tokens=False)]
