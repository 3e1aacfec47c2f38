"""Tokenizer folders: reading every common layout, writing the one `transformers` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from launcher.errors import TokenizerError
from launcher.prepare.tokenizer_config import BERT_CLASSES, BYTE_LEVEL_CLASSES, follow, read_config, require_class
from launcher.shards.identity import tokenizer_sha256
from launcher.shards.manifest import SpecialTokens, TokenizerInfo

# Names by which a role is known where the folder's configuration does not tell, best first.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<s>", "<|begin_of_text|>"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>"),
}
UNKNOWN_FIX = "give it an unknown token (`unk_token` or `unk_id` of the model in tokenizer.json), or train another"
SENTINEL = re.compile(r"^<extra_id_(\d+)>$")
# Ours and StarCoder's, Qwen's, InCoder-like spellings, Code Llama's, DeepSeek's.
FILL_IN = {
    "fim_prefix": ("<fim_prefix>", "<|fim_prefix|>", "<fim-prefix>", "<PRE>", "▁<PRE>", "<｜fim▁begin｜>"),
    "fim_middle": ("<fim_middle>", "<|fim_middle|>", "<fim-middle>", "<MID>", "▁<MID>", "<｜fim▁end｜>"),
    "fim_suffix": ("<fim_suffix>", "<|fim_suffix|>", "<fim-suffix>", "<SUF>", "▁<SUF>", "<｜fim▁hole｜>"),
}
# UL2's R, S and X: ours, the paper's, and those of the published models.
MODES = (("<mode_R>", "[R]", "[NLU]"), ("<mode_S>", "[S]", "[S2S]"), ("<mode_X>", "[X]", "[NLG]"))


@dataclass(frozen=True, slots=True)
class TokenizerHandle:
    """A tokenizer and what the rest of the program must know of it."""

    tokenizer: Tokenizer
    info: TokenizerInfo
    json: str
    """The tokenizer as it is given to other processes."""


def load_tokenizer(folder: Path) -> TokenizerHandle:
    """Read a tokenizer folder: `tokenizer.json`, BERT's `vocab.txt`, or GPT-2's `vocab.json` and `merges.txt`.

    Raises:
        TokenizerError: There is no tokenizer in it, it cannot be read, it is a vocabulary of another kind, or it has no
            token to end a document with.
    """
    try:
        config = read_config(folder)
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.txt").is_file():
            require_class(config, BERT_CLASSES, str(folder))
            tokenizer = _bert(folder / "vocab.txt")
            config["tokenizer_class"] = "BertTokenizer"
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            require_class(config, BYTE_LEVEL_CLASSES, str(folder))
            tokenizer = _gpt2(folder)
        else:
            raise TokenizerError(
                "there is no tokenizer here (tokenizer.json, vocab.txt, or vocab.json with merges.txt)",
                str(folder),
                "give one, or train one: pretrain tokenizer CORPUS --kind wordpiece --vocab-size N --out DIR",
            )
        config = follow(tokenizer, config, str(folder))
    except TokenizerError:
        raise
    except Exception as error:  # the Rust library raises bare Exceptions, and what a file holds may be anything
        raise TokenizerError(
            f"the tokenizer cannot be read: {error}", str(folder), "restore the file, or train another one"
        ) from None
    # A tokenizer.json saved for a model cuts or pads every text to the model's length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return describe_tokenizer(tokenizer, folder.resolve().name, config)


def describe_tokenizer(tokenizer: Tokenizer, name: str, config: dict[str, Any] | None = None) -> TokenizerHandle:
    """Find a tokenizer's special tokens.

    Args:
        tokenizer: Any.
        name: What to call it.
        config: Its `tokenizer_config.json`; where it names no token for a role, the common names are tried.

    Raises:
        TokenizerError: It has no token to end a document with.
    """
    roles = {role: _role_id(tokenizer, role, config or {}) for role in ROLES}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    names = [token for token in vocabulary if token.startswith("<extra_id_")]  # few are left for the pattern
    numbered = [(int(match[1]), vocabulary[match[0]]) for match in map(SENTINEL.match, names) if match]
    sentinels = tuple(token_id for _, token_id in sorted(numbered))
    fill_in = {role: _first_of(tokenizer, names) for role, names in FILL_IN.items()}
    modes = [_first_of(tokenizer, names) for names in MODES]
    added = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    # Code Llama's and Qwen's are added tokens that are not marked as special.
    named = (*roles.values(), *fill_in.values())
    known = {token_id for token_id in named if token_id is not None}
    end = next((roles[role] for role in ("eos", "sep", "bos") if roles[role] is not None), None)
    if end is None:
        raise TokenizerError(
            "the tokenizer has no token to end a document with (eos, sep or bos)",
            name,
            'name one in its tokenizer_config.json, e.g. "eos_token": "</s>"',
        )
    special = SpecialTokens(
        **roles,
        **fill_in,
        sentinels=sentinels,
        # "[S]" may be an ordinary word of a vocabulary: a mode is what was added as a special token.
        modes=tuple(token_id for token_id in modes if token_id is not None) if added.issuperset(modes) else (),
        all_ids=tuple(sorted(added | known | set(sentinels))),
        document_end=end,
    )
    # not get_vocab_size(): ids may have holes, and embeddings must reach the highest
    vocab_size = max(vocabulary.values()) + 1
    text = tokenizer.to_str()
    info = TokenizerInfo(sha256=tokenizer_sha256(text), vocab_size=vocab_size, name=name, special=special)
    return TokenizerHandle(tokenizer, info, text)


def save_tokenizer(handle: TokenizerHandle, folder: Path) -> None:
    """Write a folder that `transformers.AutoTokenizer` and `load_tokenizer` read back as the same tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    special = handle.info.special
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role in ROLES:
        token_id = getattr(special, role)
        if token_id is not None:
            config[f"{role}_token"] = handle.tokenizer.id_to_token(token_id)
    fill_in = (getattr(special, role) for role in FILL_IN)
    extra = [*special.sentinels, *special.modes, *(token_id for token_id in fill_in if token_id is not None)]
    if extra:
        config["extra_special_tokens"] = [handle.tokenizer.id_to_token(token_id) for token_id in extra]
    (folder / "tokenizer.json").write_text(handle.tokenizer.to_str(pretty=True), encoding="utf-8")
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def require_unknown(handle: TokenizerHandle, where: str) -> None:
    """See that the tokenizer has ids for every text: others fail at the first word that they do not know, which may
    be the last of a terabyte.

    Args:
        handle: The tokenizer.
        where: Its folder.

    Raises:
        TokenizerError: It has no token for what it does not know, and no other way to write it.
    """
    model = json.loads(handle.json)["model"]
    if model.get("byte_fallback"):
        return
    if model["type"] == "Unigram":
        lacking = "its model has no unk_id" if model.get("unk_id") is None else ""
    else:
        unk, vocabulary = model.get("unk_token"), model["vocab"]
        # BPE leaves out what it does not know where it names no token for it; of bytes it knows all.
        is_bpe = model["type"] == "BPE"
        is_spared = is_bpe and (unk is None or vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet()))
        is_lacking = unk not in vocabulary and not is_spared
        lacking = f"its model names {unk!r}, which is not in its vocabulary" if is_lacking else ""
    if lacking:
        raise TokenizerError(f"the tokenizer has no token for what it does not know: {lacking}", where, UNKNOWN_FIX)


def require_same_ids(handle: TokenizerHandle, where: str) -> None:
    """See that the tokenizer gives a text the same ids each time: with others no build is the one that was begun.

    Args:
        handle: The tokenizer.
        where: Its folder.

    Raises:
        TokenizerError: It leaves out merges by chance (BPE-dropout, arXiv:1910.13267).
    """
    dropout = json.loads(handle.json)["model"].get("dropout")
    if dropout:
        told = f"the tokenizer gives a text other ids each time: its model has a dropout of {dropout}"
        raise TokenizerError(told, where, 'set "dropout" to null in its tokenizer.json')


@dataclass(frozen=True, slots=True)
class TokenizerReport:
    """How a tokenizer does on a text."""

    tokens_per_byte: float
    """Of UTF-8."""
    unknown_share: float
    """Tokens that are the unknown token."""


def measure_tokenizer(handle: TokenizerHandle, texts: Iterable[str]) -> TokenizerReport:
    """Count tokens, bytes and unknown tokens over texts it was not trained on."""
    num_bytes = num_tokens = num_unknown = 0
    for text in texts:
        ids = handle.tokenizer.encode(text, add_special_tokens=False).ids
        num_bytes += len(text.encode())
        num_tokens += len(ids)
        num_unknown += ids.count(handle.info.special.unk) if handle.info.special.unk is not None else 0
    return TokenizerReport(num_tokens / max(num_bytes, 1), num_unknown / max(num_tokens, 1))


def _role_id(tokenizer: Tokenizer, role: str, config: dict[str, Any]) -> int | None:
    named = config.get(f"{role}_token")
    if isinstance(named, dict):  # {"content": "[PAD]", "lstrip": false, …}
        named = named.get("content")
    for token in ((named,) if isinstance(named, str) else ()) + ROLES[role]:
        token_id = tokenizer.token_to_id(token)
        if token_id is not None:
            return int(token_id)
    return None


def _first_of(tokenizer: Tokenizer, names: Iterable[str]) -> int | None:
    ids = (tokenizer.token_to_id(name) for name in names)
    return next((int(token_id) for token_id in ids if token_id is not None), None)


def _bert(vocab: Path) -> Tokenizer:
    # not splitlines(): U+2028 and U+0085 end a line there, and are tokens of some vocabularies
    tokens = vocab.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    ids = {token: number for number, token in enumerate(tokens)}
    lacking = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in ids]
    if lacking:
        raise TokenizerError(f"the vocabulary lacks {', '.join(lacking)}", str(vocab), "give a BERT vocabulary")
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.add_special_tokens([token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in ids])
    tokenizer.post_processor = bert_template(ids["[CLS]"], ids["[SEP]"])
    return tokenizer


def bert_template(cls_id: int, sep_id: int) -> processors.TemplateProcessing:
    """`[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls_id), ("[SEP]", sep_id)],
    )


def _gpt2(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    # RoBERTa's files look the same; adding a token they lack would widen the vocabulary.
    known = {name for names in ROLES.values() for name in names}
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_special_tokens(sorted(known & vocabulary.keys(), key=lambda name: vocabulary[name]))
    return tokenizer
