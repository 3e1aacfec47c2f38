"""A tokenizer folder gives the ids of `transformers.AutoTokenizer`, whatever its files say of each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece

from launcher.errors import TokenizerError
from launcher.prepare.tokenizer import load_tokenizer
from launcher.prepare.tokenizer_config import BERT_CLASSES, CLASS_OF_MODEL, GENERIC_MODELS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"法律LlAaWwéeÉEYyXx,", "法律", "Law", "law", "café", "cafe", "Caf", "caf"]
PIECES = [*WORDS, *(f"##{piece}" for piece in ("律", "aw", "AW", "é", "e", "x", "X", "L", "l"))]
BERT_ROLES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
GPT_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
TEXTS = [
    "Law law LAW",
    "法律法 Law",
    "Café É é, yX",
    " Law",
    "Law [MASK] Law",
    "a  L\tAW",
    "<mask> Law</s>",
    "tok TOK x",
]
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False}
DECODER = {
    "49": {"content": "tok", "special": False, "normalized": True, **PLAIN},
    "50": {"content": "TOK", "special": True, "normalized": False, **PLAIN},
}
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend", "NobodysTokenizer", None)
BERTS = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizerFast", "ElectraTokenizer", "MobileBertTokenizer")
GPTS = (
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "RobertaTokenizer",
    "RobertaTokenizerFast",
    "BartTokenizer",
    "LEDTokenizer",
)


def wordpiece(*, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece({piece: number for number, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def byte_level(*, add_prefix_space: bool) -> Tokenizer:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠL", "La", "<mask>"]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|endoftext|>"])}
    tokenizer = Tokenizer(BPE(vocabulary, [("Ġ", "L"), ("L", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"])
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer | None, name: str | None, files: Mapping[str, Any]) -> None:
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    config = {**files.get("tokenizer_config.json", {}), **({"tokenizer_class": name} if name else {})}
    for file, content in {**files, "tokenizer_config.json": config}.items():
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def assert_same(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(str(folder)), load_tokenizer(folder)
    for text in TEXTS:
        ids = ours.tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
    assert ours.info.vocab_size == len(theirs)
    for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos"):
        if getattr(theirs, f"{role}_token_id") is not None:
            assert getattr(ours.info.special, role) == getattr(theirs, f"{role}_token_id"), role


@pytest.mark.parametrize("lowercase", [True, False], ids=["lower", "cased"])
@pytest.mark.parametrize("name", [*GENERIC, "ConvBertTokenizer", *BERTS])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="the class's own"),
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"strip_accents": True},
        {"strip_accents": False},
        {"strip_accents": None},
        {"tokenize_chinese_chars": False},
        {"do_lower_case": False, "strip_accents": True},
    ],
    ids=str,
)
def test_options_of_bert_count_where_its_class_is_named(
    options: dict[str, Any], name: str | None, lowercase: bool, tmp_path: Path
) -> None:
    config = {**BERT_ROLES, **options}
    write(tmp_path, wordpiece(lowercase=lowercase), name, {"tokenizer_config.json": config})
    assert_same(tmp_path)


@pytest.mark.parametrize("model_type", [name for name in CLASS_OF_MODEL if "Bert" in CLASS_OF_MODEL[name]])
@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}], ids=str)
def test_where_no_class_is_named_the_model_is(options: dict[str, Any], model_type: str, tmp_path: Path) -> None:
    files = {"tokenizer_config.json": options, "config.json": {"model_type": model_type}}
    write(tmp_path, wordpiece(lowercase=bool(options)), None, files)  # the other way round than BERT's class has it
    assert_same(tmp_path)


@pytest.mark.parametrize("model_type", [name for name in CLASS_OF_MODEL if "Bert" not in CLASS_OF_MODEL[name]])
def test_where_no_class_is_named_the_model_of_bytes_is(model_type: str, tmp_path: Path) -> None:
    tokenizer = byte_level(add_prefix_space=True)
    tokenizer.normalizer = normalizers.Lowercase()
    write(tmp_path, tokenizer, None, {"config.json": {"model_type": model_type}})
    assert_same(tmp_path)


@pytest.mark.parametrize("model_type", sorted(GENERIC_MODELS))
@pytest.mark.parametrize("name", ["BertTokenizer", "GPT2TokenizerFast", None])
def test_some_models_take_the_file_as_it_is_whatever_is_named(
    name: str | None, model_type: str, tmp_path: Path
) -> None:
    files = {"tokenizer_config.json": BERT_ROLES, "config.json": {"model_type": model_type}}
    write(tmp_path, wordpiece(lowercase=False), name, files)
    assert_same(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("gpt2", "BertTokenizer"), ("llama", "BertTokenizerFast"), ("bert", "PreTrainedTokenizerFast")],
)
def test_else_the_class_that_is_named_is_taken(model_type: str, name: str, tmp_path: Path) -> None:
    """Most Chinese GPTs are so."""
    for named_by in ("tokenizer_config.json", "config.json"):
        folder = tmp_path / named_by
        folder.mkdir()
        model = {"model_type": model_type, **({"tokenizer_class": name} if named_by == "config.json" else {})}
        files = {"tokenizer_config.json": BERT_ROLES, "config.json": model}
        write(folder, wordpiece(lowercase=False), name if named_by != "config.json" else None, files)
        assert_same(folder)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False},
        {"strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
    ],
    ids=str,
)
def test_a_vocabulary_alone_follows_the_options_too(options: dict[str, Any], tmp_path: Path) -> None:
    files = {"vocab.txt": "\n".join(PIECES) + "\n", "tokenizer_config.json": options}
    write(tmp_path, None, "BertTokenizer", files)
    assert_same(tmp_path)


@pytest.mark.parametrize("add_prefix_space", [True, False], ids=["spaced", "not"])
@pytest.mark.parametrize("name", [*GENERIC, *GPTS])
@pytest.mark.parametrize(
    "options",
    [{}, {"add_prefix_space": True}, {"add_prefix_space": False}, {"legacy": False}, {"do_lower_case": True}],
    ids=str,
)
def test_options_of_gpt2_and_roberta_count_where_their_class_is_named(
    options: dict[str, Any], name: str | None, add_prefix_space: bool, tmp_path: Path
) -> None:
    config = {**GPT_ROLES, **options}
    write(tmp_path, byte_level(add_prefix_space=add_prefix_space), name, {"tokenizer_config.json": config})
    assert_same(tmp_path)


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "BertTokenizer", None])
@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"tokenizer_config.json": {"added_tokens_decoder": DECODER}}, id="added_tokens_decoder"),
        pytest.param({"tokenizer_config.json": {"extra_special_tokens": ["TOK"]}}, id="extra_special_tokens"),
        pytest.param({"tokenizer_config.json": {"additional_special_tokens": ["TOK"]}}, id="their former name"),
        pytest.param({"tokenizer_config.json": {"extra_special_tokens": {"tok_token": "TOK"}}}, id="with names"),
        pytest.param({"tokenizer_config.json": {"image_token": "TOK", "audio_token": None}}, id="a role of its own"),
        pytest.param(
            {
                "tokenizer_config.json": {"extra_special_tokens": ["tok"]},
                "special_tokens_map.json": {"extra_special_tokens": ["TOK"]},
            },
            id="extra_special_tokens of two files",
        ),
        pytest.param({"tokenizer_config.json": {"mask_token": "TOK"}}, id="another token for a role"),
        pytest.param(
            {
                "tokenizer_config.json": {
                    "mask_token": {"__type": "AddedToken", "content": "TOK", "normalized": False, **PLAIN}
                }
            },
            id="with marks",
        ),
        pytest.param({"added_tokens.json": {"tok": len(PIECES)}}, id="added_tokens.json"),
        pytest.param({"special_tokens_map.json": {"mask_token": "TOK"}}, id="special_tokens_map.json"),
        pytest.param(
            {"special_tokens_map.json": {"mask_token": "TOK"}, "tokenizer_config.json": {"mask_token": "[MASK]"}},
            id="special_tokens_map.json over the configuration",
        ),
        pytest.param(
            {
                "special_tokens_map.json": {"mask_token": "TOK"},
                "tokenizer_config.json": {"mask_token": "[MASK]", "added_tokens_decoder": {}},
            },
            id="but not since the configuration tells added tokens",
        ),
    ],
)
def test_tokens_that_are_named_and_missing_are_added(files: dict[str, Any], name: str | None, tmp_path: Path) -> None:
    config = {**BERT_ROLES, **files.get("tokenizer_config.json", {})}
    write(tmp_path, wordpiece(lowercase=True), name, {**files, "tokenizer_config.json": config})
    assert_same(tmp_path)


def test_another_pipeline_than_berts_is_left_to_a_generic_class_and_replaced_by_berts(tmp_path: Path) -> None:
    tokenizer = wordpiece(lowercase=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for name in (*GENERIC, *BERTS):
        write(tmp_path, tokenizer, name, {"tokenizer_config.json": {**BERT_ROLES, "do_lower_case": False}})
        assert_same(tmp_path)


@pytest.mark.parametrize("name", ["BertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("roles", [{}, BERT_ROLES, {"unk_token": "[MASK]"}], ids=str)
@pytest.mark.parametrize(
    ("option", "value"),
    [("max_input_chars_per_word", 2), ("continuing_subword_prefix", "@@"), ("unk_token", "[PAD]")],
)
def test_berts_class_has_options_of_the_model_of_its_own(
    option: str, value: Any, roles: dict[str, str], name: str, tmp_path: Path
) -> None:
    tokenizer = wordpiece(lowercase=True)
    setattr(tokenizer.model, option, value)
    write(tmp_path, tokenizer, name, {"tokenizer_config.json": roles})
    assert_same(tmp_path)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "RobertaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("option", ["dropout", "ignore_merges", "fuse_unk", "byte_fallback"])
def test_so_have_gpt2s_and_robertas(option: str, name: str, tmp_path: Path) -> None:
    tokenizer = byte_level(add_prefix_space=False)
    letters = ["<unk>", "<0x41>", *"abcLlaw", "Law"]  # few, so that much is unknown, and a word that no merge makes
    tokenizer.model = BPE({token: number for number, token in enumerate(letters)}, [], unk_token="<unk>")
    is_drawn = option == "dropout" and name == "PreTrainedTokenizerFast"
    setattr(tokenizer.model, option, 1.0 if option == "dropout" else True)
    write(tmp_path, tokenizer, name, {"tokenizer_config.json": GPT_ROLES})
    assert_same(tmp_path)
    assert is_drawn == bool(load_tokenizer(tmp_path).tokenizer.model.dropout)


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("option", ["do_lower_case", "tokenize_chinese_chars"])
def test_an_option_that_is_neither_true_nor_false_is_told(option: str, layout: str, tmp_path: Path) -> None:
    is_json = layout == "tokenizer.json"
    files: dict[str, Any] = {"tokenizer_config.json": {option: None}}
    if not is_json:
        files["vocab.txt"] = "\n".join(PIECES) + "\n"
    write(tmp_path, wordpiece(lowercase=True) if is_json else None, "BertTokenizer", files)
    with pytest.raises(TokenizerError, match=rf"{option} is neither true nor false, but null[\s\S]*fix:"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("files", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_list_of_tokens_that_is_none_is_told(files: str, tmp_path: Path) -> None:
    write(tmp_path, wordpiece(lowercase=True), None, {files: {"extra_special_tokens": 5}})
    with pytest.raises(TokenizerError, match=r"the tokenizer cannot be read: 'int'[\s\S]*fix:"):
        load_tokenizer(tmp_path)


def test_added_tokens_that_are_none_are_told(tmp_path: Path) -> None:
    config = {**BERT_ROLES, "added_tokens_decoder": {"x": "TOK"}}
    write(tmp_path, wordpiece(lowercase=True), None, {"tokenizer_config.json": config})
    with pytest.raises(TokenizerError, match=r"the added tokens cannot be read[\s\S]*mend tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_the_classes_of_models_are_those_of_transformers() -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    found = {model: tokenizer_class_from_name(name) for model, name in TOKENIZER_MAPPING_NAMES.items() if name}
    classes = {model: one.__name__ for model, one in found.items() if one is not None and model in CONFIG_MAPPING}
    assert {model: name for model, name in classes.items() if name in CLASS_OF_MODEL.values()} == CLASS_OF_MODEL
    generic = ("TokenizersBackend", "MistralCommonBackend")
    assert {model for model, name in TOKENIZER_MAPPING_NAMES.items() if name in generic} == GENERIC_MODELS
    for name in BERT_CLASSES:
        assert tokenizer_class_from_name(name).__name__ in ("BertTokenizer", name), name


@pytest.mark.parametrize(
    "name",
    [
        "Llama",
        "Qwen2",
        "T5",
        "XLMRoberta",
        "Albert",
        "Gemma",
        "GPTNeoX",
        "Deberta",
        "MPNet",
        "Herbert",
        "GPT2",
    ],
)
def test_what_any_class_saves_is_read_as_it_was_meant(name: str, tmp_path: Path) -> None:
    """Of classes that are not known here tokenizer.json is taken as it is."""
    import transformers

    of_class = getattr(transformers, f"{name}Tokenizer")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *SPECIAL, "<|endoftext|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    kind = of_class.model.__name__
    if kind == "BPE":
        tokens = [*special, *letters, *"法律▁", "ĠL", "La"]
        made = of_class(vocab={token: n for n, token in enumerate(tokens)}, merges=[("Ġ", "L"), ("L", "a")])
    elif kind == "WordPiece":
        made = of_class(vocab={token: number for number, token in enumerate([*special, *PIECES[5:]])})
    else:
        pieces = ["▁", *"LlawAW法律éecfyYxX,", "▁Law"]
        scores = {**dict.fromkeys(special, 0.0), **{piece: -3.0 - n / 100 for n, piece in enumerate(pieces)}}
        made = of_class(vocab=list(scores.items()))
    made.save_pretrained(tmp_path)
    assert_same(tmp_path)
