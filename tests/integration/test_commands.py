"""The commands as their users type them, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from launcher.engine.records import read_metrics

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def run(*words: str, cwd: Path = ROOT, timeout: int = 400) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment without anything that a launcher may have left in ours."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name not in names}
    env["PATH"] = f"{BIN}:{env['PATH']}"
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


LIGHT = """
import sys, launcher.cli as cli
try:
    cli.main({words})
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["recipe", "law-bert-zh"],
        ["recipe", "law-t5-zh", "--json"],
        ["prepare", "--help"],
        ["verify", "--help"],
    ],
)
def test_commands_of_a_login_node_do_not_import_torch(words: list[str]) -> None:
    done = run(sys.executable, "-c", LIGHT.format(words=words))
    assert done.stdout.strip()
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "launcher" in loaded
    assert loaded & {"torch", "deepspeed", "transformers", "datasets", "pandas", "pyarrow"} == set()


def test_the_training_program_reads_its_arguments_before_it_imports_torch() -> None:
    done = run(sys.executable, "-X", "importtime", "launcher/train.py", "--ds_config", "zero3", "trian.x=1")
    assert done.returncode == 2
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "launcher.config.loading" in modules
    assert modules & {"torch", "deepspeed", "transformers"} == set()
    assert "RecipeError: unknown key trian" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--ds_config is missing"),
        (["--ds_config", "zero3", "--recipe"], "argument --recipe: expected one argument"),
    ],
)
def test_an_incomplete_command_line_is_told_once(words: list[str], message: str) -> None:
    done = run(sys.executable, "launcher/train.py", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"UsageError: {message}")
    assert done.stderr.count("UsageError") == 1


def test_recipe_prints_yaml_that_is_the_recipe(tmp_path: Path) -> None:
    done = run("pretrain", "recipe", "law-gpt-zh", "train.num_steps=50")
    assert done.returncode == 0
    assert "train.num_steps: 50" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("train.num_steps"))
    assert line.endswith("# override")
    fields = json.loads(run("pretrain", "recipe", "law-gpt-zh", "--json").stdout)
    assert fields["objective.kind"]["value"] == "clm"
    assert fields["optim.eps"]["origin"] == "default"
    assert fields["optim.lr"]["meaning"]


def test_overrides_may_stand_behind_an_option() -> None:
    done = run("pretrain", "recipe", "law-bert-zh", "--json", "train.num_steps=5")
    assert json.loads(done.stdout)["train.num_steps"]["value"] == 5
    done = run("pretrain", "verify", "a", "b")
    assert done.returncode == 2
    assert "unrecognized arguments: b" in done.stderr


def test_a_file_system_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder belongs")
    done = run("pretrain", "quickstart", "--out", str(tmp_path / "data" / "law"))
    assert done.returncode in (2, 75)
    assert "Traceback" not in done.stderr


def test_deepspeed_starts_the_file_on_two_ranks(tmp_path: Path) -> None:
    shards = tiny.make_shards(tmp_path)
    tree = tiny.recipe_tree("mlm", shards, tmp_path / "runs", train__num_steps=3, eval__prompts=["人民[MASK]院"])
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tree)
    words = ["deepspeed", "--num_gpus", "2", "--master_port", "29611", "launcher/train.py", "--ds_config", "zero3.json"]
    done = run(*words, "--recipe", str(recipe), "optim.lr=0.001")
    assert done.returncode == 0, done.stdout + done.stderr
    run_folder = tmp_path / "runs" / "tiny"
    assert [x["step"] for x in read_metrics(run_folder / "metrics.jsonl") if "lr" in x] == [1, 2, 3]
    assert done.stdout.count("validation loss") == 3  # before, after, and in the closing lines
    assert "pretrain fill" in done.stdout
    for name in ("recipe.yaml", "ds_config.json", "metrics.jsonl", "export/model.safetensors", "logs/rank-00001.log"):
        assert (run_folder / name).is_file(), name


def test_an_error_passes_through_deepspeed_with_its_code_and_is_printed_once() -> None:
    words = ["deepspeed", "--num_gpus", "2", "--master_port", "29612", "launcher/train.py", "--ds_config", "zero7.json"]
    done = run(*words)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("DsConfigError:") == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_a_recipe_without_shards_prints_the_command_that_prepares_them(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launcher.train", "--ds_config", "zero3", "--recipe", "law-gpt-zh"]
    done = run(*words, f"data.shards={tmp_path / 'none'}", f"runs={tmp_path}")
    assert done.returncode == 2
    assert (
        f"pretrain prepare data/law-zh/corpus.jsonl --tokenizer data/law-zh/tokenizer --out {tmp_path / 'none'}"
        in done.stderr
    )


def test_a_hostfile_is_checked_before_deepspeed_ignores_it(tmp_path: Path) -> None:
    done = run("pretrain", "hostfile", "hostfiles/two_nodes")
    assert done.stdout.splitlines()[-1] == "in all: 16 ranks on 2 hosts"
    done = run("pretrain", "hostfile", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "ClusterError: the hostfile cannot be read" in done.stderr


def test_the_console_command_and_the_module_are_the_same() -> None:
    assert run("pretrain", "--help").stdout == run(sys.executable, "-m", "launcher.cli", "--help").stdout
