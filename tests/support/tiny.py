"""A tiny corpus, tokenizer, shards and recipes, made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

WORDS = "人民法院应当依照法律规定审理案件国务院有关部门负责全国的监督管理工作公民享有权利并且承担义务".strip()
MODELS: dict[str, dict[str, Any]] = {
    "mlm": {
        "family": "modernbert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "config": {"layer_types": ["full_attention", "full_attention"]},
    },
    "clm": {
        "family": "gpt2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "config": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    },
    "span": {
        "family": "t5",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "config": {"d_kv": 16, "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu"},
    },
}
PAIR_MODELS: dict[str, dict[str, Any]] = {
    "nsp": {
        "family": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    },
    "sop": {
        "family": "albert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "config": {"embedding_size": 16, "classifier_dropout_prob": 0.0},
    },
}
HEADS = {"mlm": "masked", "clm": "causal", "span": "seq2seq"}


def write_corpus(path: Path, num_documents: int = 150, mark: str = "，") -> Path:
    """JSONL of short texts with some structure: two halves of a sentence that belong together.

    Args:
        path: The file.
        num_documents: A line each.
        mark: What stands between the parts of a text; "。" makes them sentences.
    """
    rng = random.Random(7)
    halves = [WORDS[i : i + 4] for i in range(0, len(WORDS), 4)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_documents):
            text = mark.join(halves[rng.randrange(len(halves))] + str(number % 10) for _ in range(rng.randrange(5, 30)))
            file.write(
                json.dumps({"completion": f"第{number}条　{text}。", "source": "tiny"}, ensure_ascii=False) + "\n"
            )
    return path


def make_shards(folder: Path, kind: str = "wordpiece", *, words: bool = False, sentences: bool = False) -> Path:
    """`folder/shards`, `folder/tokenizer` and `folder/corpus.jsonl`; returns the shards' folder."""
    from rich.console import Console

    from launcher.prepare.build import build_shards
    from launcher.prepare.request import BuildRequest
    from launcher.prepare.tokenizer_training import train_tokenizer

    corpus = write_corpus(folder / "corpus.jsonl", mark="。" if sentences else "，")
    texts = [json.loads(line)["completion"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    train_tokenizer(texts, kind, {"wordpiece": 200, "bpe": 480}[kind], folder / "tokenizer")
    request = BuildRequest(
        corpus=(str(corpus),),
        tokenizer=folder / "tokenizer",
        out=folder / "shards",
        validation_share=0.1,
        words=words,
        sentences=sentences,
        workers=1,
    )
    build_shards(request, Console(quiet=True))
    return folder / "shards"


def recipe_tree(objective: str, shards: Path, runs: Path, /, **changes: Any) -> dict[str, Any]:
    """A recipe of 20 steps in fp32; `changes` are dotted fields with `__` for the dot."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "runs": str(runs),
        "data": {"shards": str(shards), "seq_len": 24},
        "objective": {"kind": objective},
        "model": json.loads(json.dumps(MODELS[objective])),
        "batch": {"global_batch": 8},
        "optim": {"lr": 3.0e-3},
        "schedule": {"kind": "cosine", "warmup_steps": 3},
        "train": {"num_steps": 20, "precision": "fp32", "seed": 1},
        "eval": {"max_samples": 24, "micro_batch": 4},
    }
    for field, value in changes.items():
        section = tree
        *parents, last = field.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return tree


def pair_tree(kind: str, shards: Path, runs: Path, /, **changes: Any) -> dict[str, Any]:
    """`recipe_tree` of masked tokens with sentence pairs, `nsp` or `sop`."""
    objective = {"kind": "mlm", "sentence_pairs": kind}
    model = json.loads(json.dumps(PAIR_MODELS[kind]))
    return recipe_tree("mlm", shards, runs, **{"objective": objective, "model": model, **changes})


def write_recipe(path: Path, tree: dict[str, Any]) -> Path:
    """Write a recipe file."""
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def tokenizer_info() -> Any:
    """A tokenizer of 96 ids with every special token the objectives use."""
    from launcher.shards.manifest import SpecialTokens, TokenizerInfo

    sentinels = tuple(range(5, 15))
    special = SpecialTokens(
        pad=0,
        unk=1,
        cls=2,
        sep=3,
        mask=4,
        bos=None,
        eos=None,
        sentinels=sentinels,
        all_ids=tuple(range(15)),
        document_end=3,
    )
    return TokenizerInfo(sha256="0" * 64, vocab_size=96, name="tiny", special=special)
