"""Encoders: whoever tokenizes, the ids are those of `tokenizers`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import Model, Unigram, WordLevel

from launcher.errors import MissingDependencyError, TokenizerError
from launcher.prepare import encoders, parity
from launcher.prepare.encoders import (
    FAST,
    Encoded,
    EncodeOptions,
    FastEncoder,
    ReferenceEncoder,
    build_encoder,
    candidates,
    installed,
    plain_tokenizer,
    without_special,
)
from launcher.prepare.nasty_texts import nasty_texts
from launcher.prepare.parity import Choice, choose_encoder
from launcher.prepare.quality import cure_of, unknown_characters, warn_unknown
from launcher.prepare.segmenters import preferred_segmenter
from launcher.prepare.tokenizer import load_tokenizer, measure_tokenizer
from launcher.prepare.tokenizer_training import train_tokenizer


@pytest.fixture(scope="module")
def tokenizers_json(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("kinds")
    sizes = {"wordpiece": 300, "bpe": 500, "unigram": 200}
    return {k: train_tokenizer(texts, k, n, folder / k).tokenizer.to_str() for k, n in sizes.items()}


def encoded(encoder: encoders.Encoder, texts: Sequence[str]) -> list[list[int]]:
    flat = encoder.encode(list(texts))
    return [part.tolist() for part in np.split(flat.ids_N, np.cumsum(flat.lengths_D)[:-1])]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_the_reference_is_tokenizers_with_special_names_as_text(
    tokenizers_json: dict[str, str], texts: list[str], kind: str
) -> None:
    plain = encoders.plain_tokenizer(tokenizers_json[kind])
    wanted = [*texts[:20], "a [MASK] b </s> c", ""]
    expected = [plain.encode(text, add_special_tokens=False).ids for text in wanted]
    assert encoded(ReferenceEncoder(tokenizers_json[kind]), wanted) == expected


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_faster_encoder_is_exact_or_refused_by_the_gate(
    tokenizers_json: dict[str, str], texts: list[str], tmp_path: Path, name: str, kind: str
) -> None:
    if name not in candidates(tokenizers_json[kind]):
        pytest.skip(f"{name} is not installed or takes no {kind}")
    try:
        choose_encoder(tokenizers_json[kind], "0" * 64, lambda: texts, name, tmp_path)
    except TokenizerError:
        assert choose_encoder(tokenizers_json[kind], "0" * 64, lambda: texts, "auto", tmp_path).name != name
        return
    fast = build_encoder(EncodeOptions(encoder=name), tokenizers_json[kind])
    reference = ReferenceEncoder(tokenizers_json[kind])
    nasty = nasty_texts(plain_tokenizer(tokenizers_json[kind]))
    mixed = [text[i:] + other for i, (text, other) in enumerate(zip(texts, nasty, strict=False))]
    assert encoded(fast, mixed) == encoded(reference, mixed)


def test_special_tokens_are_taken_out_and_others_stay(tokenizers_json: dict[str, str]) -> None:
    fields = json.loads(tokenizers_json["bpe"])
    fields["added_tokens"].append({**fields["added_tokens"][0], "id": 499, "content": "own", "special": False})
    left = json.loads(without_special(json.dumps(fields)))["added_tokens"]
    assert [token["content"] for token in left] == ["own"]


class Panic(BaseException):
    """What a panic of Rust's is to Python: no Exception."""


def test_where_a_faster_encoder_breaks_down_the_reference_takes_the_text(
    tokenizers_json: dict[str, str], texts: list[str]
) -> None:
    reference = ReferenceEncoder(tokenizers_json["bpe"])
    taken: list[str] = []

    def encode(batch: list[str]) -> Encoded:
        if any("条文7。" in text for text in batch):
            raise Panic
        taken.extend(batch)
        return reference.encode(batch)

    fast = FastEncoder(lambda: encode, reference)
    assert encoded(fast, texts) == encoded(reference, texts)
    assert len(taken) == len(texts) - sum("条文7。" in text for text in texts)


def test_an_encoder_begins_anew_when_the_process_has_grown(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], texts: list[str]
) -> None:
    reference = ReferenceEncoder(tokenizers_json["bpe"])
    begun: list[int] = []
    grown = iter([0, 50, 100, 101, 60, 60, 160, 161, 161])  # at its beginnings, and before each batch
    monkeypatch.setattr(encoders, "resident_bytes", lambda: next(grown))
    monkeypatch.setattr(encoders, "MAX_GROWTH", 100)

    def load() -> encoders.Encode:
        begun.append(len(begun))
        return reference.encode

    fast = FastEncoder(load, reference)
    expected = encoded(reference, texts[:3])
    counts = []
    for _ in range(6):
        assert encoded(fast, texts[:3]) == expected
        counts.append(len(begun))
    assert counts == [1, 1, 2, 2, 2, 3]


NEVER_TWICE = """
import random, resource, sys
from launcher.prepare import encoders
from launcher.prepare.encoders import EncodeOptions, build_encoder
name, path, megabytes, encoders.MAX_GROWTH = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) << 20
encoder, rng = build_encoder(EncodeOptions(encoder=name), open(path).read()), random.Random(1)
letters = str.maketrans("0123456789", "ghijklmnop")
for _ in range(4 * megabytes):  # a quarter of one at a time
    words = [("%x" % rng.getrandbits(32)).translate(letters) for _ in range(28_000)]
    encoder.encode([" ".join(words[start : start + 500]) for start in range(0, len(words), 500)])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_memory_does_not_grow_with_words_that_never_come_back(tokenizers_json: dict[str, str], tmp_path: Path) -> None:
    if "gigatoken" not in candidates(tokenizers_json["bpe"]):
        pytest.skip("gigatoken is not installed")
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizers_json["bpe"], encoding="utf-8")

    def peak(megabytes: int, growth: int) -> int:
        words = [sys.executable, "-c", NEVER_TWICE, "gigatoken", str(file), str(megabytes), str(growth)]
        return int(subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout)

    assert peak(12, 24) - peak(4, 24) < 30  # MB; without the bound 60 (measured)


class Wrong:
    """An encoder whose ids differ on one text."""

    def __init__(self, reference: ReferenceEncoder, on: str) -> None:
        self._reference, self._on = reference, on

    def encode(self, texts: Sequence[str]) -> Encoded:
        flat = self._reference.encode(texts)
        return Encoded(flat.ids_N + any(self._on in text for text in texts), flat.lengths_D)


def with_fake(monkeypatch: pytest.MonkeyPatch, tokenizer_json: str, on: str) -> list[str]:
    """Replaces what gigatoken loads by an encoder that is wrong on texts that hold `on`; returns what was asked."""
    asked: list[str] = []
    real = build_encoder

    def build(options: EncodeOptions, json_text: str) -> encoders.Encoder:
        if options.encoder == "tokenizers":
            return real(options, json_text)
        asked.append(options.encoder)
        return Wrong(ReferenceEncoder(tokenizer_json), on)

    monkeypatch.setattr(parity, "build_encoder", build)
    monkeypatch.setattr(parity, "candidates", lambda _: ["gigatoken"])
    return asked


@pytest.mark.parametrize(
    ("on", "says"),
    [("İstanbul", r"differs on 'İstanbul.*\(nasty text \d+\)"), ("第77条", "differs on document 77 of the sample")],
    ids=["a nasty text", "a document"],
)
def test_ids_that_differ_anywhere_are_never_used_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch,
    tokenizers_json: dict[str, str],
    texts: list[str],
    tmp_path: Path,
    on: str,
    says: str,
) -> None:
    with_fake(monkeypatch, tokenizers_json["bpe"], on)
    choice = choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "auto", tmp_path)
    assert choice.name == "tokenizers"
    assert re.search(says, choice.reason)
    assert choice.record.endswith(" differs")
    monkeypatch.setattr(parity, "installed", lambda name: "1.0")
    with pytest.raises(TokenizerError, match=says):
        choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "gigatoken", tmp_path)


def test_the_same_ids_in_other_documents_are_other_ids(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], texts: list[str], tmp_path: Path
) -> None:
    reference = ReferenceEncoder(tokenizers_json["bpe"])

    def encode(batch: list[str]) -> Encoded:
        flat = reference.encode(batch)
        moved = np.zeros_like(flat.lengths_D)
        if len(batch) > 1:  # the last token of the first text falls to the second
            moved[:2] = -1, 1
        return Encoded(flat.ids_N, flat.lengths_D + moved)

    monkeypatch.setattr(parity, "candidates", lambda _: ["gigatoken"])
    monkeypatch.setitem(FAST, "gigatoken", replace(FAST["gigatoken"], load=lambda _: encode))
    assert choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "auto", tmp_path).name == "tokenizers"


@pytest.mark.parametrize("on", ["മലയാളം", "private", "㐀䶵", "🧿"])
def test_what_stands_beside_young_characters_in_a_nasty_text_is_asked_of_the_program_too(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], texts: list[str], tmp_path: Path, on: str
) -> None:
    """The reference takes the whole text, and would be held against itself."""
    wrong = Wrong(ReferenceEncoder(tokenizers_json["bpe"]), on)
    monkeypatch.setitem(FAST, "gigatoken", replace(FAST["gigatoken"], load=lambda _: wrong.encode))
    monkeypatch.setattr(parity, "candidates", lambda _: ["gigatoken"])
    choice = choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "auto", tmp_path)
    assert (choice.name, "(nasty text" in choice.reason) == ("tokenizers", True)


def test_ids_that_differ_only_in_company_differ(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], texts: list[str], tmp_path: Path
) -> None:
    reference = ReferenceEncoder(tokenizers_json["bpe"])

    def encode(batch: list[str]) -> Encoded:
        return Wrong(reference, texts[0] if len(batch) > 1 else "no text has this").encode(batch)

    monkeypatch.setattr(parity, "candidates", lambda _: ["gigatoken"])
    monkeypatch.setitem(FAST, "gigatoken", replace(FAST["gigatoken"], load=lambda _: encode))
    choice = choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "auto", tmp_path)
    assert (choice.name, "differs on document 0 of the sample" in choice.reason) == ("tokenizers", True)


def test_the_gate_holds_little_of_a_sample_however_long_its_documents_are(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], tmp_path: Path
) -> None:
    reference, held, most_held, sizes = ReferenceEncoder(tokenizers_json["bpe"]), [0], [0], [0]

    def sample() -> Iterator[str]:
        for number in range(200):
            held[0] += 1
            yield f"Law {number} " * (4000 if number else 400_000)

    def encode(batch: list[str]) -> Encoded:
        if batch[0].startswith("Law"):
            sizes.append(sum(map(len, batch)))
            most_held[0] = max(most_held[0], held[0])
            held[0] -= len(batch)
        return reference.encode(batch)

    monkeypatch.setattr(parity, "candidates", lambda _: ["gigatoken"])
    monkeypatch.setattr(parity.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setitem(FAST, "gigatoken", replace(FAST["gigatoken"], load=lambda _: encode))
    choice = choose_encoder(tokenizers_json["bpe"], "0" * 64, sample, "auto", tmp_path)
    assert "on 200 documents" in choice.reason
    assert max(sizes) < 300_000
    assert most_held[0] < 80


def test_an_exact_encoder_is_used_and_remembered(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], texts: list[str], tmp_path: Path
) -> None:
    asked = with_fake(monkeypatch, tokenizers_json["bpe"], "nothing has this")
    enough = [*texts, *texts][:200]
    for _ in range(2):
        choice = choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: enough, "auto", tmp_path)
        assert choice.name == "gigatoken"
        assert "ids equal to the reference's on 200 documents and" in choice.reason
        # The manifest is the same whatever was remembered, of this corpus or another.
        assert choice.record == f"gigatoken {choice.version}: ids equal to the reference's"
    assert choice.reason.endswith("as was found before")
    assert asked == ["gigatoken"]  # the second time it was remembered
    (tmp_path / f"{'0' * 64}.json").write_text("damaged")
    choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: enough, "auto", tmp_path)
    choose_encoder(tokenizers_json["bpe"], "1" * 64, lambda: enough, "auto", tmp_path / "file" / "not a folder")
    assert len(asked) == 3
    monkeypatch.setattr(parity, "installed", lambda name: "0.0.1")  # of another version nothing is known
    choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: enough, "auto", tmp_path)
    assert len(asked) == 4


def test_a_program_that_could_not_start_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], texts: list[str], tmp_path: Path
) -> None:
    """A library was missing, or the disk full: that says nothing of the tokenizer."""
    reference, started = ReferenceEncoder(tokenizers_json["bpe"]), [False]

    def load(_: str) -> encoders.Encode:
        if not started[0]:
            raise ImportError("libstdc++.so.6: version not found")
        return reference.encode

    monkeypatch.setattr(parity, "candidates", lambda _: ["gigatoken"])
    monkeypatch.setitem(FAST, "gigatoken", replace(FAST["gigatoken"], load=load))
    choice = choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "auto", tmp_path)
    assert (choice.name, "version not found" in choice.reason) == ("tokenizers", True)
    started[0] = True
    assert choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "auto", tmp_path).name == "gigatoken"


def test_what_a_small_corpus_says_for_an_encoder_is_not_remembered_for_a_larger_one(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], texts: list[str], tmp_path: Path
) -> None:
    asked = with_fake(monkeypatch, tokenizers_json["bpe"], "龘")
    few, many = [*texts, *texts][:199], [*texts, *texts, "龘"]
    assert choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: few, "auto", tmp_path).name == "gigatoken"
    for _ in range(2):
        choice = choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: many, "auto", tmp_path)
        assert choice.name == "tokenizers"
        assert "differs on document 240 of the sample" in choice.reason
    assert len(asked) == 2  # that it differs holds for any corpus


def test_an_encoder_that_cannot_be_had_is_told(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], texts: list[str]
) -> None:
    with pytest.raises(TokenizerError, match=r"no encoder 'gigatokens'[\s\S]*did you mean 'gigatoken'"):
        choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "gigatokens")
    monkeypatch.setattr(parity, "installed", lambda name: "")
    with pytest.raises(MissingDependencyError, match=r"pip install fastokens"):
        choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "fastokens")
    monkeypatch.undo()
    monkeypatch.setattr(parity, "candidates", lambda _: [])
    monkeypatch.setattr(parity, "installed", lambda name: "1.0")
    with pytest.raises(TokenizerError, match="does not take this kind"):
        choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts, "fastokens")
    assert choose_encoder(tokenizers_json["bpe"], "0" * 64, lambda: texts).reason.endswith("(pip install -e '.[fast]')")


def test_the_reference_is_what_it_is_asked_for(tokenizers_json: dict[str, str]) -> None:
    version = installed("tokenizers")
    told = f"tokenizers {version}, the reference"
    choice = choose_encoder(tokenizers_json["bpe"], "0" * 64, list, "tokenizers")
    assert choice == Choice("tokenizers", version, told, told)


@pytest.mark.parametrize(
    "options", [EncodeOptions(), EncodeOptions(segmenter=preferred_segmenter())], ids=["ids", "words"]
)
@pytest.mark.parametrize(
    ("model", "told"),
    [
        (WordLevel({"law": 0, "</s>": 1}, unk_token="[UNK]"), r"Missing \[UNK\] token"),
        (Unigram([("law", -1.0), ("</s>", -2.0)]), "`unk_id` is missing"),
    ],
    ids=["wordlevel", "unigram"],
)
def test_a_tokenizer_without_a_token_for_what_it_does_not_know_is_refused(
    model: Model, told: str, options: EncodeOptions
) -> None:
    encoder = build_encoder(options, Tokenizer(model).to_str())
    with pytest.raises(TokenizerError, match=rf"fails on a text: .*{told}[\s\S]*give it an unknown token"):
        encoder.encode(["law", "法律"])


def test_a_worker_imports_nothing_heavy() -> None:
    heavy = "torch transformers deepspeed datasets pandas pyarrow rich"
    script = f"import sys, launcher.prepare.worker; print([m for m in '{heavy}'.split() if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "[]"


def test_a_tokenizer_that_does_not_know_the_text_is_told_loudly_with_the_cure(tokenizer_folder: Path) -> None:
    handle = load_tokenizer(tokenizer_folder)
    strange = ["法律 Ω ж 龘 律法"] * 5
    report = measure_tokenizer(handle, strange)
    assert report.unknown_share > 0.005
    lost = unknown_characters(handle, strange)
    told = warn_unknown(handle, report.unknown_share, lost, cure_of(handle, lost))
    assert told is not None
    assert "龘" in told
    assert "pretrain tokenizer CORPUS" in told
    assert warn_unknown(handle, 0.004, [], "") is None


def test_an_unsound_encoder_is_only_used_by_name(
    monkeypatch: pytest.MonkeyPatch, tokenizers_json: dict[str, str], texts: list[str], tmp_path: Path
) -> None:
    asked = with_fake(monkeypatch, tokenizers_json["wordpiece"], "nothing has this")
    monkeypatch.setattr(parity, "candidates", lambda _: ["tokie"])
    monkeypatch.setattr(parity, "installed", lambda name: "1.0")
    choice = choose_encoder(tokenizers_json["wordpiece"], "0" * 64, lambda: texts, "auto", tmp_path)
    assert choice.name == "tokenizers"
    assert "between the bytes of a character" in choice.reason
    assert asked == []
    assert choose_encoder(tokenizers_json["wordpiece"], "0" * 64, lambda: texts, "tokie", tmp_path).name == "tokie"
