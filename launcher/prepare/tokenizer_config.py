"""What `transformers.AutoTokenizer` does about a `tokenizer.json` for the files beside it, without transformers, whose
import takes 9 s of CPU.

A generic class takes `tokenizer.json` as it is, whatever `tokenizer_config.json` says of lower case. A class of a model
takes no more than the vocabulary and makes the rest anew, from options of `tokenizer_config.json` and defaults of its
own. Known here are BERT's, GPT-2's and RoBERTa's; of any other class `tokenizer.json` is taken as it is, which its own
saved files agree with. Then all classes add the tokens that are named and missing. Source: transformers 5.23,
`models/auto/tokenization_auto.py` and `tokenization_utils_tokenizers.py`; a test holds the ids against its.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece

from launcher.errors import TokenizerError

ROLE_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BERT = (
    ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"),
)
GPT2 = ("unk_token", "bos_token", "eos_token"), ("<|endoftext|>",) * 3
ROBERTA = ROLE_KEYS, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>")
BERT_CLASSES = frozenset(
    f"{name}Tokenizer" for name in ("Bert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "SqueezeBert")
)
"""Not ConvBert's, which is generic: it has no code of its own."""
ROBERTA_CLASSES = frozenset(f"{name}Tokenizer" for name in ("Roberta", "Bart", "LED", "Mvp", "Longformer"))
BYTE_LEVEL_CLASSES = ROBERTA_CLASSES | {"GPT2Tokenizer"}
GENERIC_CLASSES = frozenset(("None", "PreTrainedTokenizer", "TokenizersBackend", "ConvBertTokenizer"))
"""Whose way to cut texts is the file's."""
CLASS_OF_MODEL = {
    **dict.fromkeys(
        (
            *("align", "bark", "bert", "blip", "bros", "chinese_clip", "convbert", "distilbert", "electra"),
            *("ernie", "flava", "git", "grounding-dino", "layoutlm", "lxmert", "megatron-bert"),
            *("mm-grounding-dino", "mobilebert", "nomic_bert", "squeezebert", "tvp", "vilt", "visual_bert"),
        ),
        "BertTokenizer",
    ),
    **dict.fromkeys(
        (
            *("blip-2", "codegen", "dbrx", "emu3", "gpt2", "gpt_neo", "gptj", "hyperclovax_vision_v2"),
            *("instructblip", "instructblipvideo", "jais2", "opt", "phi", "starcoder2"),
        ),
        "GPT2Tokenizer",
    ),
    **dict.fromkeys(
        (
            *("bart", "bridgetower", "clap", "data2vec-text", "florence2", "ibert", "led", "lilt", "longformer"),
            *("mra", "mvp", "roberta", "roberta-prelayernorm"),
        ),
        "RobertaTokenizer",
    ),
}
"""By `model_type` of `config.json`, where no class is named."""
GENERIC_MODELS = frozenset(
    (
        *("EvollaModel", "arctic", "aria", "beam", "bigbird_pegasus", "camembertv2-base", "canary", "chatlm"),
        *("cohere_asr", "ernie4_5", "ernie4_5_moe", "flex_olmo", "fuyu", "glm", "glm4", "glm4_moe"),
        *("glm4_moe_lite", "glm4v", "glm4v_moe", "glm_image", "glmasr", "got_ocr2", "gpt_bigcode"),
        *("gradium_phonon_tts", "granite", "granitemoe", "granitemoehybrid", "granitemoeshared", "h2ovl_chat"),
        *("hyperclovax", "hyperclovax_vlm", "internlm2", "internlm3", "iquestcoder", "jamba", "kimi_k25"),
        *("kimi_linear", "kosmos-2", "llava", "llava_next", "mimo_v2_flash", "minicpm3", "minicpm_ocr"),
        *("minicpmv", "minicpmv4_6", "minicpmv4_7", "minimax_m2", "ministral", "ministral3", "mistral"),
        *("mistral3", "mistral_large4", "mixtral", "modernbert", "modernbert-decoder", "molmo", "molmo2"),
        *("nemo_speechlm", "nemotron", "nvfp4", "nystromformer", "olmo2", "olmo3", "olmo_hybrid", "opencua"),
        *("openvla", "paddleocr_vl", "pegasus_x", "persimmon", "phi3", "phi3_v", "phimoe", "pix2struct"),
        *("pixtral", "pocket_tts", "smolvlm", "stablelm", "step3_vl", "umt5", "vipllava", "voxtral"),
        *("voxtral_realtime", "xlm-roberta-xl"),
    )
)
"""Models whose class is generic, whatever is named."""


def read_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with what other files add to it.

    Raises:
        TokenizerError: A file holds no JSON object.
    """
    config = _json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # written since 2023, and then the others are of no account
        roles = _json(folder / "special_tokens_map.json")
        if isinstance(roles.get("extra_special_tokens"), list):  # which come to the others
            roles["extra_special_tokens"] = [*_listed(config), *roles["extra_special_tokens"]]
        config |= roles
        added = _json(folder / "added_tokens.json")
        special = {_content(config.get(key)) for key in ROLE_KEYS} | set(map(_content, _extra(config)))
        config["added_tokens_decoder"] = {
            str(number): {"content": token, "normalized": token not in special, "special": token in special}
            for token, number in added.items()
        }
    model = _json(folder / "config.json")
    model_type = str(model.get("model_type"))
    named = config.get("tokenizer_class") or model.get("tokenizer_class") or CLASS_OF_MODEL.get(model_type)
    config["tokenizer_class"] = None if model_type in GENERIC_MODELS else named
    return config


def require_class(config: Mapping[str, Any], classes: Collection[str], where: str) -> None:
    """See that a vocabulary that lies alone is cut by the class it was made for: other classes' files look the same.

    Args:
        config: Of `read_config`.
        classes: Those that cut as it will be.
        where: The folder.

    Raises:
        TokenizerError: Another class is named.
    """
    name = _class_of(config)
    if name not in classes and name not in GENERIC_CLASSES:
        raise TokenizerError(
            f"{name} is named for a vocabulary without a tokenizer.json, and cuts texts in a way of its own",
            where,
            "write it: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )


def _class_of(config: Mapping[str, Any]) -> str:
    return str(config.get("tokenizer_class")).removesuffix("Fast")


def follow(tokenizer: Tokenizer, config: dict[str, Any], where: str) -> dict[str, Any]:
    """Make a `tokenizer.json` what the class makes of it that is named beside it.

    Args:
        tokenizer: As it stands in the file; changed.
        config: Of `read_config`.
        where: The folder.

    Returns:
        The configuration with the roles of tokens that the class knows by itself.

    Raises:
        TokenizerError: An option is neither true nor false, or one that cannot be followed.
    """
    if _flag(config, "split_special_tokens", default=False, where=where):
        raise TokenizerError(
            "split_special_tokens is set: texts would be cut inside of special tokens, which no tokenizer.json says",
            where,
            "set it to false in tokenizer_config.json",
        )
    name, model = _class_of(config), tokenizer.model
    if name in BERT_CLASSES and isinstance(model, WordPiece):
        config = dict(zip(*BERT, strict=True)) | config
        model.unk_token = _content(config["unk_token"])
        model.continuing_subword_prefix, model.max_input_chars_per_word = "##", 100
        tokenizer.normalizer = _bert_normalizer(config, where)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    elif name in BYTE_LEVEL_CLASSES and isinstance(model, BPE):
        config = dict(zip(*(GPT2 if name == "GPT2Tokenizer" else ROBERTA), strict=True)) | config
        model.unk_token, model.dropout = None, None
        model.fuse_unk = model.byte_fallback = model.ignore_merges = False
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = _byte_level(config, where)
        tokenizer.decoder = decoders.ByteLevel()
    _add_missing(tokenizer, config, where)
    return config


def _bert_normalizer(config: Mapping[str, Any], where: str) -> normalizers.BertNormalizer:
    strip_accents = config.get("strip_accents")  # null: as lower case is
    return normalizers.BertNormalizer(
        lowercase=_flag(config, "do_lower_case", default=True, where=where),
        strip_accents=None if strip_accents is None else _flag(config, "strip_accents", default=True, where=where),
        handle_chinese_chars=_flag(config, "tokenize_chinese_chars", default=True, where=where),
    )


def _byte_level(config: Mapping[str, Any], where: str) -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=_flag(config, "add_prefix_space", default=False, where=where))


def _flag(config: Mapping[str, Any], key: str, *, default: bool, where: str) -> bool:
    value = config.get(key, default)
    if isinstance(value, bool):
        return value
    raise TokenizerError(
        f"{key} is neither true nor false, but {json.dumps(value)}", where, "mend tokenizer_config.json"
    )


def _add_missing(tokenizer: Tokenizer, config: Mapping[str, Any], where: str) -> None:
    """Add the tokens that the configuration names; of those that the vocabulary has only the marks change."""
    known = tokenizer.get_added_tokens_decoder().values()
    marked, contents = {repr(token) for token in known}, {token.content for token in known}
    roles = [config[key] for key in ROLE_KEYS if key in config]
    wanted: list[AddedToken] = []
    try:
        for _, fields in sorted((int(key), fields) for key, fields in config.get("added_tokens_decoder", {}).items()):
            token = AddedToken(**fields)
            if repr(token) not in marked:
                wanted.append(token)
        for named in [*roles, *_extra(config)]:
            name = _content(named)
            if name and name not in contents and name not in {token.content for token in wanted}:
                wanted.append(_special(named))
    except (TypeError, ValueError, AttributeError) as error:
        told = f"the added tokens cannot be read: {error}"
        raise TokenizerError(told, where, "mend tokenizer_config.json") from None
    for token in wanted:
        token.special = token.special or token.content in map(_content, roles)
    tokenizer.add_tokens(wanted)


def _special(named: str | dict[str, Any]) -> AddedToken:
    if isinstance(named, str):
        return AddedToken(named, special=True, normalized=False)
    marks = {key: named[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in named}
    return AddedToken(named["content"], special=True, **marks)


def _extra(config: Mapping[str, Any]) -> Iterator[Any]:
    """Special tokens that have no role of all models: those of roles of their own, then the others."""
    for key, named in config.items():
        if key.endswith("_token") and key not in ROLE_KEYS and (isinstance(named, str) or "content" in _fields(named)):
            yield named
    yield from _listed(config)


def _listed(config: Mapping[str, Any]) -> Iterator[Any]:
    """Special tokens in a list, under its name of today and that of before."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    yield from extra.values() if isinstance(extra, dict) else extra


def _fields(named: Any) -> Mapping[str, Any]:
    return named if isinstance(named, dict) else {}


def _content(named: Any) -> str:
    return str(named.get("content", "")) if isinstance(named, dict) else str(named or "")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"the file is not a JSON object: {error}", str(path), "restore the file") from None
    if not isinstance(tree, dict):
        raise TokenizerError("the file is not a JSON object", str(path), "restore the file")
    return tree
