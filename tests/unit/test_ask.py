"""Asking a folder: what is wrong with it, or with the question, is told."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from launcher import cli
from launcher.ask import Sampling, fill, generate
from launcher.errors import ModelError, UsageError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its mask token is `<mask>`, and its letters are bytes: `[MASK]` as text is six tokens."""
    folder = tmp_path_factory.mktemp("asked")
    tiny.make_shards(folder, "bpe")
    return folder / "tokenizer"


def saved(model: PreTrainedModel, folder: Path, tokenizer: Path) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def bert(tokenizer: Path, positions: int = 16) -> BertConfig:
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    numbers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertConfig(vocab_size=size, max_position_embeddings=positions, **numbers)


def test_a_blank_is_one_token_whatever_the_tokenizer_calls_it(tokenizer: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = saved(BertForMaskedLM(bert(tokenizer)), tmp_path / "bert", tokenizer)
    (answer,) = fill(folder, ["[MASK]" * 14], top=10_000)  # 16 positions, of which two are for the ends
    assert len(answer.blanks) == 14
    assert len(answer.blanks[0].words) == len(AutoTokenizer.from_pretrained(tokenizer))  # no more words than there are
    with pytest.raises(UsageError, match="a text of 15 tokens is too long for a model of 16 positions"):
        fill(folder, ["[MASK]" * 15])


def test_weights_that_are_missing_or_damaged_are_told(tokenizer: Path, tmp_path: Path) -> None:
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    config = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    folder = saved(GPT2LMHeadModel(config), tmp_path / "gpt2", tokenizer)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for kept in (500, len(whole) - 100):
        weights.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=r"the weights cannot be read[\s\S]*where: .*gpt2"):
            generate(folder, ["人民"])
    weights.unlink()
    with pytest.raises(ModelError, match=r"the weights cannot be read: .*no file named model.safetensors"):
        generate(folder, ["人民"])


def test_a_model_without_its_head_does_not_answer_with_drawn_weights(tokenizer: Path, tmp_path: Path) -> None:
    folder = saved(BertModel(bert(tokenizer)), tmp_path / "headless", tokenizer)
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights[\s\S]*fix: .*saved with its head"):
        fill(folder, ["人民[MASK]院"])


def test_an_encoder_reads_the_end_token_of_its_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    config = T5Config(
        vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    folder = saved(T5ForConditionalGeneration(config), tmp_path / "t5", tokenizer)
    (answer,) = generate(folder, ["人民<extra_id_0>院"], max_tokens=3)
    assert answer.prompt == "人民<extra_id_0>院"


@pytest.fixture(scope="module")
def gpt2(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights large enough that no two tokens are about as likely."""
    torch.manual_seed(0)
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    config = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5)
    return saved(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"), tokenizer)


def test_answers_are_as_long_as_asked_and_as_the_positions_allow(gpt2: Path, tokenizer: Path) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer)
    prompt = "人民"
    num_asked = len(words(prompt).input_ids)
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    for max_tokens in (1, 7, 1000):
        (answer,) = generate(gpt2, [prompt], max_tokens)
        ids = words(prompt, return_tensors="pt").input_ids
        for _ in range(min(max_tokens, 32 - num_asked)):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert answer.text == words.decode(ids[0], skip_special_tokens=True)


def test_drawn_answers_follow_from_seed_and_text_alone(gpt2: Path) -> None:
    drawn = Sampling(temperature=1.0, seed=5)
    first, second = generate(gpt2, ["人民", "法院"], 12, drawn)
    assert generate(gpt2, ["法院", "人民"], 12, drawn) == [second, first]
    assert generate(gpt2, ["人民"], 12, Sampling(temperature=1.0, seed=6)) != [first]
    greedy = generate(gpt2, ["人民"], 12)
    assert greedy != [first]
    # Of a temperature near 0, and of the fewest tokens that are likely at all, one is left.
    assert generate(gpt2, ["人民"], 12, Sampling(temperature=1e-4)) == greedy
    assert generate(gpt2, ["人民"], 12, Sampling(temperature=1.0, top_p=1e-6)) == greedy


def test_tokens_are_drawn_as_often_as_the_model_holds_them_likely(gpt2: Path, tokenizer: Path) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer)
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    likely = (model(words("人民", return_tensors="pt").input_ids).logits.detach()[0, -1] / 4.0).softmax(-1)
    # The likeliest tokens make half of the answers, of which there are more than transformers' own choice of 50.
    common = set(
        likely.argsort(descending=True)[: int((likely.sort(descending=True).values.cumsum(0) < 0.5).sum())].tolist()
    )
    assert len(common) > 50
    seeds = [Sampling(temperature=4.0, seed=seed) for seed in range(100)]
    drawn = [generate(gpt2, ["人民"], 1, seed)[0].text for seed in seeds]
    told = {"人民" + words.decode(token) for token in common}
    found = sum(text in told for text in drawn) / len(seeds)
    assert found == pytest.approx(0.5, abs=0.2)


def test_texts_come_from_standard_input_too(
    gpt2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*words: str, piped: str = "") -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        code = cli.main(["generate", str(gpt2), *words])
        told = capsys.readouterr()
        return code, told.out + told.err

    options = ("--max-tokens", "3", "--top-p", "0.9", "--seed", "2", "--json")
    code, piped = ask(*options, piped="人民\n\n法院\n")
    assert (code, piped) == ask("人民", "法院", *options)
    assert [answer["prompt"] for answer in json.loads(piped)] == ["人民", "法院"]
    assert ask("人民", *options)[1] != ask("人民", *options, "--temperature", "0")[1]
    code, told = ask(piped="\n")
    assert code == 2
    assert "UsageError: there is no text to answer" in told


def test_a_run_does_not_allow_its_own_code_to_run(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, ran = tmp_path / "run", tmp_path / "ran"
    export = Path(shutil.copytree(gpt2, run / "export"))
    (run / "recipe.yaml").write_text("model: {continue_from: /mine, trusted_code: [modeling_mine.py]}")
    names = {"auto_map": {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}}
    (export / "config.json").write_text(json.dumps(json.loads((export / "config.json").read_text()) | names))
    (export / "modeling_mine.py").write_text(
        f"from transformers import GPT2LMHeadModel\nopen({str(ran)!r}, 'w').close()\n"
        "class MineForCausalLM(GPT2LMHeadModel): ...\n"
    )
    words = ["generate", str(run), "人民", "--max-tokens", "2"]
    assert cli.main(words) == 0  # as the family that transformers has
    assert not ran.exists()
    assert cli.main([*words, "--trust", "other.py"]) == 2
    assert "behind pretrain fill, generate or export" in capsys.readouterr().err
    assert not ran.exists()
    assert cli.main([*words, "--trust", "other.py", "modeling_mine.py"]) == 0
    assert ran.exists()
    with pytest.raises(SystemExit):
        cli.main([*words, "--trust", "modeling_mine.py", "人民"])
    assert "'人民' is not the name of a Python file in the model's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--temperature", "-1"], "'-1' is not a temperature of 0 or more"),
        (["--temperature", "nan"], "'nan' is not a temperature of 0 or more"),
        (["--top-p", "0"], "'0' is not a probability above 0, and at most 1"),
        (["--top-p", "1.5"], "'1.5' is not a probability above 0, and at most 1"),
        (["--max-tokens", "0"], "'0' is not a number of 1 or more"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", "anywhere", "人民", *words])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
