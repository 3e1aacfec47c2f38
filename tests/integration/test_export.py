"""The exported folder is the model that was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import engine_jobs
import export_jobs
import jobs
import numpy as np
import pytest
import tiny
from checkpoints import flip
from ranks import run_ranks
from safetensors.torch import load_file

from launcher import cli
from launcher.engine.records import read_metrics


@pytest.mark.parametrize(
    ("objective", "stage", "ranks"), [("mlm", 3, 2), ("clm", 0, 1), ("clm", 3, 2), ("span", 2, 2), ("mlm", 1, 1)]
)
def test_exported_logits_equal_the_engines_bit_for_bit(
    objective: str, stage: int, ranks: int, shards: Path, tmp_path: Path
) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree(objective, shards, tmp_path, train__num_steps=3))
    arguments = ["--ds_config", f"zero{stage}", "--recipe", str(path)]
    inputs, logits = run_ranks(engine_jobs.live_logits, ranks, arguments)[0]
    assert cli.main(["export", str(tmp_path / "tiny"), "--out", str(tmp_path / "out")]) == 0
    (again,) = run_ranks(export_jobs.exported_logits, 1, str(tmp_path / "out"), tiny.HEADS[objective], inputs)
    np.testing.assert_array_equal(again, logits)


def test_a_large_model_is_cut_into_files_a_layer_in_memory_at_a_time(shards: Path, tmp_path: Path) -> None:
    tree = tiny.recipe_tree("clm", shards, tmp_path, train__num_steps=1)
    tree["model"] |= {"num_hidden_layers": 12, "hidden_size": 64}
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    inputs, logits = run_ranks(engine_jobs.live_logits, 2, ["--ds_config", "zero2", "--recipe", str(path)])[0]
    out = tmp_path / "out"
    (most,) = run_ranks(export_jobs.export_and_count, 1, str(tmp_path / "tiny"), str(out), 500_000)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-00006.safetensors" for number in range(1, 7)]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    whole = sum(tensor.numel() * 4 for file in files for tensor in load_file(out / file).values())
    assert index["metadata"]["total_size"] == whole
    assert all((out / file).stat().st_size < 520_000 for file in files)
    assert most < whole / 5  # the twelfth part is a layer
    (again,) = run_ranks(export_jobs.exported_logits, 1, str(out), "causal", inputs)
    np.testing.assert_array_equal(again, logits)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_exported(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny.recipe_tree("clm", shards, tmp_path, train__num_steps=2, checkpoint__every_steps=1)
    run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(tiny.write_recipe(tmp_path / "r.yaml", tree))])
    run = tmp_path / "tiny"
    flip(run / "checkpoints" / "step-00000002" / "rank-00000.safetensors", 5000)
    assert cli.main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "warning: the checkpoint of step 2 is damaged: rank-00000.safetensors: the file's bytes are" in told.err
    assert told.out == f"{tmp_path / 'out'}: from {run / 'checkpoints' / 'step-00000001'}\n"
    assert cli.main(["export", str(run), "--step", "2", "--out", str(tmp_path / "out")]) == 2
    assert "DamagedCheckpointError: the file's bytes are not those that were written" in capsys.readouterr().err
    assert (run / "checkpoints" / "step-00000002").exists()


BART = {
    "family": "bart",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (3, 2)])
def test_what_is_no_parameter_is_exported_too(stage: int, ranks: int, shards: Path, tmp_path: Path) -> None:
    # BART adds a persistent buffer to its logits
    tree = tiny.recipe_tree("span", shards, tmp_path, train__num_steps=2, model=BART)
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    arguments = ["--ds_config", f"zero{stage}", "--recipe", str(path)]
    inputs, logits = run_ranks(engine_jobs.live_logits, ranks, arguments)[0]
    assert cli.main(["export", str(tmp_path / "tiny"), "--out", str(tmp_path / "out")]) == 0
    (again,) = run_ranks(export_jobs.exported_logits, 1, str(tmp_path / "out"), "seq2seq", inputs)
    np.testing.assert_array_equal(again, logits)
    assert run_ranks(jobs.train, ranks, [*arguments, "train.num_steps=3"]) == [0] * ranks


def test_a_masked_model_is_exported_with_card_and_tokenizer_and_answers(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny.recipe_tree("mlm", shards, tmp_path, train__num_steps=3, eval__prompts=["人民[MASK]院"])
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(path)]) == [0]
    folder = tmp_path / "tiny" / "export"
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 64
    assert "Unigram entropy" in card
    assert "corpus.jsonl" in card
    assert cli.main(["fill", str(tmp_path / "tiny"), "人民[MASK]院", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["blanks"]) == 1
    assert len(answer["blanks"][0]["words"]) == 3
    assert cli.main(["fill", str(tmp_path / "tiny"), "人民法院"]) == 2
    assert "there is no blank" in capsys.readouterr().err
    assert cli.main(["generate", str(tmp_path / "tiny"), "人民"]) == 2
    assert "does not generate text" in capsys.readouterr().err
    assert cli.main(["fill", str(tmp_path / "tiny"), "人民" * 40 + "[MASK]"]) == 2
    assert "is too long for a model of 64 positions" in capsys.readouterr().err


@pytest.mark.parametrize(("objective", "prompt"), [("clm", "人民"), ("span", "人民<extra_id_0>院")])
def test_models_that_write_go_on_from_a_text(
    objective: str, prompt: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree(objective, shards, tmp_path, train__num_steps=2))
    run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(path)])
    assert cli.main(["generate", str(tmp_path / "tiny"), prompt, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["prompt"] == prompt
    for asked, message in (("", "there is no token"), ("人民" * 200, "is too long for a model of 64 positions")):
        if objective == "clm":
            assert cli.main(["generate", str(tmp_path / "tiny"), asked]) == 2
            assert message in capsys.readouterr().err
    (tmp_path / "tiny" / "export" / "tokenizer.json").unlink()
    (tmp_path / "tiny" / "export" / "tokenizer_config.json").unlink()
    assert cli.main(["generate", str(tmp_path / "tiny"), prompt]) == 2
    assert "the folder holds no tokenizer" in capsys.readouterr().err


def test_a_card_says_so_where_others_would_read_the_tokenizer_otherwise(shards: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = {"family": "qwen2", **sizes, "num_key_value_heads": 2, "max_position_embeddings": 64}
    tree = tiny.recipe_tree("clm", shards, tmp_path, model=model, train__num_steps=1)
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    assert run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(path)]) == [0]
    card = (tmp_path / "tiny" / "export" / "README.md").read_text(encoding="utf-8")
    assert "it takes `Qwen2Tokenizer`, whatever the folder names." in card


def test_a_model_is_continued_from_an_exported_folder(shards: Path, tmp_path: Path) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("mlm", shards, tmp_path, train__num_steps=6))
    run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(path)])
    first = json.loads((tmp_path / "tiny" / "checkpoints" / "step-00000006" / "state.json").read_text())
    for stage, ranks in ((1, 1), (3, 2)):
        tree = tiny.recipe_tree("mlm", shards, tmp_path, name=f"more{stage}", train__num_steps=1)
        tree["model"] = {"continue_from": str(tmp_path / "tiny" / "export")}
        path = tiny.write_recipe(tmp_path / "more.yaml", tree)
        assert run_ranks(jobs.train, ranks, ["--ds_config", f"zero{stage}", "--recipe", str(path)]) == [0] * ranks
        state = json.loads((tmp_path / f"more{stage}" / "checkpoints" / "step-00000001" / "state.json").read_text())
        assert state["evaluations"][0]["loss"] == pytest.approx(first["evaluations"][-1]["loss"], abs=1e-5)


def test_a_folder_without_the_head_is_not_continued_from(shards: Path, tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=400, **shape)).save_pretrained(tmp_path / "body")
    tree = tiny.recipe_tree("mlm", shards, tmp_path, model={"continue_from": str(tmp_path / "body")})
    path = tiny.write_recipe(tmp_path / "r.yaml", tree)
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero1", "--recipe", str(path)])
    assert code == 2
    assert "of the model's weights, cls.predictions" in told
    (tmp_path / "body" / "model.safetensors").unlink()
    ((code, told),) = run_ranks(jobs.train_and_tell, 1, ["--ds_config", "zero1", "--recipe", str(path)])
    assert code == 2
    assert "the weights cannot be read" in told


def test_export_without_a_checkpoint_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "there is no complete checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_never_deletes_what_it_did_not_write(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_tree("mlm", shards, tmp_path, train__num_steps=1))
    run_ranks(jobs.train, 1, ["--ds_config", "zero1", "--recipe", str(path)])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(mine)
    for out in (str(mine), ".", "thesis.txt"):
        assert cli.main(["export", str(tmp_path / "tiny"), "--out", out]) == 2
        assert "there is something here that is no exported model" in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "years of work"
    for _ in range(2):  # new, and over an export
        assert cli.main(["export", str(tmp_path / "tiny"), "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert cli.main(["export", str(tmp_path / "tiny"), "--out", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()


def test_a_model_whose_code_came_with_it_is_trained_where_the_recipe_names_that_code(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny.recipe_tree("clm", shards, tmp_path, name="first", train__num_steps=3)
    assert run_ranks(
        jobs.train, 2, ["--ds_config", "zero1", "--recipe", str(tiny.write_recipe(tmp_path / "r", tree))]
    ) == [0, 0]
    plain, mine, ran = tmp_path / "first" / "export", tmp_path / "mine", tmp_path / "ran"
    shutil.copytree(plain, mine)
    names = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    config = json.loads((plain / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": names}))
    (mine / "configuration_mine.py").write_text(
        f"from transformers import GPT2Config\nopen({str(ran)!r}, 'w').close()\n"
        "class MineConfig(GPT2Config):\n    model_type = 'mine'\n"
    )
    (mine / "modeling_mine.py").write_text(
        "from transformers import GPT2LMHeadModel\nfrom .configuration_mine import MineConfig\n"
        "from pathlib import Path\n"
        "def purge(*_):\n"  # the folder need not stay as it is while the run goes on
        f"    Path({str(mine / 'configuration_mine.py')!r}).unlink(missing_ok=True)\n"
        "class MineForCausalLM(GPT2LMHeadModel):\n    config_class = MineConfig\n"
        "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.register_forward_hook(purge)\n"
    )
    for name, folder, code, ends_with in [
        ("plain", plain, [], 0),
        ("unnamed", mine, [], 2),
        ("half", mine, ["modeling_mine.py"], 2),
        ("named", mine, ["modeling_mine.py", "configuration_mine.py"], 0),
    ]:
        tree = tiny.recipe_tree("clm", shards, tmp_path, name=name, train__num_steps=3, eval__prompts=["the"])
        tree["model"] = {"continue_from": str(folder), "trusted_code": code}
        words = ["--ds_config", "zero3", "--recipe", str(tiny.write_recipe(tmp_path / "r.yaml", tree))]
        ranks = 2 if ends_with == 0 else 1
        assert run_ranks(jobs.train, ranks, words) == [ends_with] * ranks
        assert ran.exists() == (name == "named")
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "batch_digest" in line]
        for name in ("plain", "named")
    ]
    assert losses[0] == losses[1]
    assert not (mine / "configuration_mine.py").exists()
    exported = tmp_path / "named" / "export"
    assert {"modeling_mine.py", "configuration_mine.py"} <= {path.name for path in exported.iterdir()}
    assert json.loads((exported / "config.json").read_text())["auto_map"] == names
    run, trust = str(tmp_path / "named"), ["--trust", "modeling_mine.py", "configuration_mine.py"]
    for words in (["export", run, "--out", str(tmp_path / "again")], ["generate", run, "the"]):
        ran.unlink()
        assert cli.main(words) == 2  # whatever the run's recipe says
        assert "--trust configuration_mine.py modeling_mine.py" in capsys.readouterr().err
        assert not ran.exists()
        assert cli.main([*words, *trust]) == 0
