"""Tokenizers: trained the same twice, saved and loaded the same, and readable by transformers."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE, Model, Unigram, WordLevel, WordPiece

from launcher import units
from launcher.cli import main
from launcher.errors import CorpusError, TokenizerError
from launcher.prepare.quality import cure_of, unknown_characters, warn_unknown
from launcher.prepare.tokenizer import (
    describe_tokenizer,
    load_tokenizer,
    measure_tokenizer,
    require_unknown,
    save_tokenizer,
)
from launcher.prepare.tokenizer_training import train_tokenizer

KINDS = [("wordpiece", 300), ("bpe", 500), ("unigram", 250)]


@pytest.mark.parametrize(("kind", "vocab_size"), KINDS[:2])  # not unigram: see train_tokenizer
def test_the_same_texts_give_the_same_bytes(tmp_path: Path, texts: list[str], kind: str, vocab_size: int) -> None:
    for name in ("one", "two"):
        train_tokenizer(iter(texts), kind, vocab_size, tmp_path / name)
    one, two = (tmp_path / name / "tokenizer.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(("kind", "vocab_size"), KINDS)
def test_a_trained_tokenizer_is_loaded_by_transformers(
    tmp_path: Path, texts: list[str], kind: str, vocab_size: int
) -> None:
    from transformers import AutoTokenizer

    handle = train_tokenizer(texts, kind, vocab_size, tmp_path / "trained")
    special = handle.info.special
    loaded = AutoTokenizer.from_pretrained(tmp_path / "trained")
    assert loaded.pad_token_id == special.pad is not None
    assert loaded.unk_token_id == special.unk is not None
    assert loaded.mask_token_id == special.mask is not None
    assert (loaded.cls_token_id, loaded.sep_token_id) == (special.cls, special.sep)
    assert (loaded.bos_token_id, loaded.eos_token_id) == (special.bos, special.eos)
    assert len(special.sentinels) == 100
    text = texts[3] + " <extra_id_7>"
    assert loaded(text)["input_ids"] == handle.tokenizer.encode(text).ids
    assert special.sentinels[7] in handle.tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("kind", "vocab_size", "fills_in", "has_modes"),
    [("wordpiece", 300, False, False), ("bpe", 500, True, True), ("unigram", 250, False, True)],
)
def test_a_trained_tokenizer_has_the_tokens_of_the_objectives_it_serves(
    tmp_path: Path, texts: list[str], kind: str, vocab_size: int, fills_in: bool, has_modes: bool
) -> None:
    handle = train_tokenizer(texts, kind, vocab_size, tmp_path / "trained")
    special = handle.info.special
    fill_in = [special.fim_prefix, special.fim_middle, special.fim_suffix]
    names = ["<fim_prefix>", "<fim_middle>", "<fim_suffix>"]
    assert fill_in == [handle.tokenizer.token_to_id(name) for name in names]
    assert (None not in fill_in) == fills_in
    assert len(special.modes) == (3 if has_modes else 0)
    assert {*special.modes, *(fill_in if fills_in else ())} <= set(special.all_ids)
    assert not set(special.modes) & set(special.sentinels)


@pytest.mark.parametrize(
    ("names", "modes"),
    [
        (["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "[R]", "[S]", "[X]"], (3, 4, 5)),
        (["<PRE>", "<MID>", "<SUF>", "[NLU]", "[S2S]", "[NLG]"], (3, 4, 5)),
        (["<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜fim▁hole｜>", "[R]", "[S]"], ()),
    ],
    ids=["Qwen's and the paper's", "Code Llama's and UL2's", "DeepSeek's, and a mode missing"],
)
def test_tokens_for_the_middle_and_for_modes_are_known_by_the_fields_names(
    names: list[str], modes: tuple[int, ...]
) -> None:
    tokenizer = Tokenizer(WordLevel({}, unk_token="<unk>"))
    tokenizer.add_special_tokens([*names, "</s>"])
    special = describe_tokenizer(tokenizer, "t").info.special
    assert (special.fim_prefix, special.fim_middle, special.fim_suffix) == (0, 1, 2)
    assert special.modes == modes


@pytest.mark.parametrize(("kind", "vocab_size"), KINDS)
def test_loading_and_saving_keep_the_identity(tmp_path: Path, texts: list[str], kind: str, vocab_size: int) -> None:
    trained = train_tokenizer(texts, kind, vocab_size, tmp_path / "trained")
    first = load_tokenizer(tmp_path / "trained")
    save_tokenizer(first, tmp_path / "again" / "trained")
    assert trained.info == first.info == load_tokenizer(tmp_path / "again" / "trained").info


def test_berts_vocabulary_is_read(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n法\n律\nlaw\n\u2028\nend\n", encoding="utf-8"
    )
    lowercasing = load_tokenizer(tmp_path)
    assert lowercasing.tokenizer.encode("法律 LAW end").ids == [2, 5, 6, 7, 9, 3]
    special = lowercasing.info.special
    assert (special.pad, special.unk, special.cls, special.sep, special.mask) == (0, 1, 2, 3, 4)
    assert (special.document_end, special.all_ids, lowercasing.info.vocab_size) == (3, (0, 1, 2, 3, 4), 10)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path).tokenizer.encode("LAW").ids == [2, 1, 3]


@pytest.mark.parametrize("layout", ["vocab.txt", "tokenizer.json", "tokenizer.json of no class"])
def test_capitals_that_a_vocabulary_lacks_are_cured_by_what_the_warning_says(tmp_path: Path, layout: str) -> None:
    """bert-base-chinese comes in both layouts."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n法\n律\nl\n##a\n##w\n", encoding="utf-8")
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"do_lower_case": false}')
    saved = tmp_path / "tokenizer.json"
    if layout != "vocab.txt":
        load_tokenizer(tmp_path).tokenizer.save(str(saved))
        (tmp_path / "vocab.txt").unlink()
    if layout == "tokenizer.json":
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')

    def warning(text: str) -> str:
        handle = load_tokenizer(tmp_path)
        share = measure_tokenizer(handle, [text]).unknown_share
        lost = unknown_characters(handle, [text])
        return warn_unknown(handle, share, lost, cure_of(handle, lost)) or ""

    assert 'set "do_lower_case": true in its tokenizer_config.json' in warning("法律 Law")
    assert "lower" not in warning("法律 ♡ Z"), "that is unknown in lower case too"
    if layout == "tokenizer.json of no class":
        assert '"lowercase": true in the normalizer of its tokenizer.json' in warning("法律 Law")
        saved.write_text(saved.read_text().replace('"lowercase": false', '"lowercase": true'))
    else:
        config.write_text('{"do_lower_case": true}')
    assert warning("法律 Law") == ""
    assert "lower" not in warning("法律 LAW♡"), "it does already"


def test_gpt2s_files_are_read(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "ab", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    handle = load_tokenizer(tmp_path)
    assert handle.tokenizer.encode("ab").ids == [256]
    assert handle.info.special.eos == handle.info.special.document_end == 257
    save_tokenizer(handle, tmp_path / "saved" / tmp_path.name)
    assert load_tokenizer(tmp_path / "saved" / tmp_path.name).info == handle.info


def test_robertas_files_keep_their_vocabulary(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet, "<mask>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    handle = load_tokenizer(tmp_path)
    assert handle.info.vocab_size == len(vocabulary)
    assert handle.info.special.all_ids == (0, 1, 2, 3, len(vocabulary) - 1)
    assert handle.tokenizer.encode("<mask>").ids == [len(vocabulary) - 1]


@pytest.mark.parametrize("vocab_size", [106, 120, 160, 300])
def test_a_wordpiece_vocabulary_is_never_larger_than_asked_for(
    tmp_path: Path, texts: list[str], vocab_size: int
) -> None:
    for name in ("one", "two"):
        handle = train_tokenizer(texts, "wordpiece", vocab_size, tmp_path / name)
        assert handle.info.vocab_size <= vocab_size
    assert (tmp_path / "one" / "tokenizer.json").read_bytes() == (tmp_path / "two" / "tokenizer.json").read_bytes()
    assert handle.tokenizer.token_to_id("律") is not None or vocab_size < 160  # frequent characters stay


def test_training_replaces_a_tokenizer_but_never_something_else(tmp_path: Path, texts: list[str]) -> None:
    out = tmp_path / "t"
    for _ in range(2):
        train_tokenizer(texts, "wordpiece", 200, out)
    (out / "model.safetensors").write_text("weeks of training")
    with pytest.raises(TokenizerError, match=r"something else under this name[\s\S]*fix: +give another --out"):
        train_tokenizer(texts, "wordpiece", 200, out)
    assert (out / "model.safetensors").exists()


def test_a_unigram_vocabulary_without_room_for_every_character_is_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match=r"no room for every character[\s\S]*--kind bpe"):
        train_tokenizer(texts, "unigram", 110, tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_saved_with_truncation_does_not_cut_texts(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = tmp_path / "cutting"
    shutil.copytree(tokenizer_folder, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(load_tokenizer(folder).tokenizer.encode("公民的合法权益受法律保护").ids) > 4
    assert load_tokenizer(folder).info.sha256 == load_tokenizer(tokenizer_folder).info.sha256


def test_the_report_counts_tokens_and_unknowns(tokenizer_folder: Path) -> None:
    report = measure_tokenizer(load_tokenizer(tokenizer_folder), ["法律龘"])
    assert report.tokens_per_byte == pytest.approx(3 / 9)
    assert report.unknown_share == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({}, "there is no tokenizer here", id="nothing"),
        pytest.param({"tokenizer.json": "{"}, "cannot be read", id="damaged"),
        pytest.param({"vocab.txt": "a\nb\n"}, r"lacks \[UNK\], \[CLS\], \[SEP\]", id="not BERT's"),
        pytest.param({"tokenizer_config.json": "["}, "not a JSON object", id="damaged configuration"),
        pytest.param(
            {
                "vocab.txt": "[UNK]\n[CLS]\n[SEP]\n",
                "tokenizer_config.json": '{"split_special_tokens": true}',
            },
            "split_special_tokens is set: texts would be cut inside of special tokens",
            id="an option that cannot be followed",
        ),
        pytest.param(
            {"vocab.txt": "[UNK]\n[CLS]\n[SEP]\n", "tokenizer_config.json": '{"tokenizer_class": "RoFormerTokenizer"}'},
            "RoFormerTokenizer is named for a vocabulary without a tokenizer.json",
            id="a vocabulary of another class than BERT's",
        ),
        pytest.param(
            {
                "vocab.json": "{}",
                "merges.txt": "",
                "tokenizer_config.json": '{"tokenizer_class": "Qwen2TokenizerFast"}',
            },
            "Qwen2Tokenizer is named for a vocabulary without a tokenizer.json",
            id="a vocabulary of another class than GPT-2's",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TokenizerError, match=rf"{message}[\s\S]*fix:"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_cannot_end_a_document_is_refused(tmp_path: Path) -> None:
    Tokenizer(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="no token to end a document with"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("kind", "size", "message"), [("bqe", 500, "no tokenizer kind 'bqe'"), ("bpe", 200, "use 367")]
)
def test_a_tokenizer_that_cannot_be_trained_is_refused(tmp_path: Path, kind: str, size: int, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        train_tokenizer(["法律"], kind, size, tmp_path / "t")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_no_text_makes_no_tokenizer(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CorpusError, match=r"no text to train on[\s\S]*check the files"):
        train_tokenizer([], kind, 1000, tmp_path / "made")
    assert not any(tmp_path.iterdir())


def test_who_has_just_trained_a_tokenizer_is_not_told_to_train_one(
    tmp_path: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    letters = [f"{chr(0x4E00 + number)}律" for number in range(3000)]
    corpus = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"completion": text}, ensure_ascii=False) for text in [*texts, *letters])
    corpus.write_text("\n".join(lines), encoding="utf-8")
    out = ["--kind", "wordpiece", "--vocab-size", "300", "--out", str(tmp_path / "out")]
    assert main(["tokenizer", str(corpus), *out]) == 0
    told = capsys.readouterr().err
    assert "unknown to out" in told
    assert "cure: give it a larger --vocab-size" in told
    assert "train a tokenizer" not in told


@pytest.mark.parametrize(("kind", "vocab_size"), KINDS)
def test_who_waits_for_a_tokenizer_is_told_how_much_it_is_made_from(
    tmp_path: Path, texts: list[str], kind: str, vocab_size: int
) -> None:
    said = io.StringIO()
    train_tokenizer(texts, kind, vocab_size, tmp_path / kind, Console(file=said))
    size = units.size(sum(len(text.encode()) for text in texts))
    assert f"training {kind} on {size} of text" in said.getvalue()
    assert ("it takes about" in said.getvalue()) == (kind == "unigram")  # whose trainer is slow


@pytest.mark.parametrize(
    ("model", "told"),
    [
        pytest.param(WordPiece({"law": 0}, unk_token="[UNK]"), r"its model names '\[UNK\]'", id="wordpiece"),
        pytest.param(WordLevel({"law": 0}, unk_token="[UNK]"), r"its model names '\[UNK\]'", id="wordlevel"),
        pytest.param(BPE({"l": 0}, [], unk_token="<unk>"), "its model names '<unk>'", id="bpe"),
        pytest.param(Unigram([("law", -1.0)]), "its model has no unk_id", id="unigram"),
    ],
)
def test_a_tokenizer_that_fails_on_what_it_does_not_know_is_refused_before_any_text(
    model: Model, told: str, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the corpus it knows nothing; were it to know all, a larger one would be refused by the gate, or fail late."""
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["[UNK]", "<unk>", "</s>"])  # an added token is none that the model takes
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    code = main(["prepare", str(corpus), "--tokenizer", str(tmp_path), "--out", str(tmp_path / "shards")])
    said = capsys.readouterr().err
    assert (code, "the tokenizer has no token for what it does not know" in said) == (2, True)
    assert re.search(told, said)
    assert f"where: {tmp_path}" in said
    assert not (tmp_path / "shards").exists()


def test_a_tokenizer_that_draws_how_it_cuts_a_word_is_refused(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build that was killed would go on with other ids."""
    tokenizer = Tokenizer(BPE({"l": 0, "a": 1, "la": 2}, [("l", "a")], dropout=0.1))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    code = main(["prepare", str(corpus), "--tokenizer", str(tmp_path), "--out", str(tmp_path / "shards")])
    said = capsys.readouterr().err
    assert (code, "other ids each time: its model has a dropout of 0.1" in said) == (2, True)
    assert f"where: {tmp_path}" in said
    assert 'set "dropout" to null' in said


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(WordPiece({"[UNK]": 0}, unk_token="[UNK]"), id="it has one"),
        pytest.param(BPE({"l": 0}, []), id="bpe leaves it out"),
        pytest.param(
            BPE(
                {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [], unk_token="?"
            ),
            id="it knows all bytes",
        ),
        pytest.param(Unigram([("law", -1.0)], byte_fallback=True), id="it falls back to bytes"),
        pytest.param(Unigram([("<unk>", -1.0)], unk_id=0), id="unigram has one"),
    ],
)
def test_a_tokenizer_that_has_ids_for_every_text_is_taken(model: Model) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["</s>"])
    require_unknown(describe_tokenizer(tokenizer, "t"), "t")
