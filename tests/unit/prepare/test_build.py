"""Building shards: complete or not there, the same whoever does it, and found out when damaged."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from rich.console import Console

from launcher.errors import CorpusError, ShardError, TokenizerError, UsageError
from launcher.prepare import build, merge, part
from launcher.prepare.build import build_shards
from launcher.prepare.filters import FilterOptions
from launcher.prepare.parity import Choice
from launcher.prepare.pool import Workers
from launcher.prepare.request import BuildRequest
from launcher.prepare.split import is_held_out
from launcher.prepare.tokenizer import load_tokenizer
from launcher.shards.manifest import read_manifest
from launcher.shards.reader import open_split
from launcher.shards.search import find_documents
from launcher.shards.verify import verify


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_document_is_on_exactly_one_side_in_the_corpus_order(request_: BuildRequest, texts: list[str]) -> None:
    manifest = build_shards(request_)
    assert manifest == read_manifest(request_.out)
    assert manifest is not None
    assert manifest.filters == {"read": 120, "kept": 120, "empty": 0, "not_text": 0}
    assert verify(request_.out) == []
    tokenizer = load_tokenizer(request_.tokenizer).tokenizer
    for name, held_out in (("train", False), ("validation", True)):
        split = open_split(request_.out, name)
        expected = [text for text in texts if is_held_out(text, 0.2) == held_out]
        assert 0 < split.num_documents == len(expected)
        for number, text in enumerate(expected):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert split.document(number).tolist() == [*ids, manifest.tokenizer.special.document_end]
    assert len(manifest.splits["train"].shards) > 2


def test_the_entropy_is_that_of_the_tokens_without_document_ends(request_: BuildRequest) -> None:
    manifest = build_shards(request_)
    assert manifest is not None
    split = open_split(request_.out, "train")
    out = np.empty(split.num_tokens, dtype=np.int32)
    split.read(0, out)
    _, counts = np.unique(out[out != manifest.tokenizer.special.document_end], return_counts=True)
    shares = counts / counts.sum()
    assert manifest.splits["train"].unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum())


def test_one_and_two_workers_write_the_same_bytes(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "batch_bytes", lambda options: 200)  # many batches
    build_shards(request_)
    monkeypatch.undo()
    other = replace(request_, out=request_.out.with_name("other"), workers=2)
    build_shards(other)
    assert contents(request_.out) == contents(other.out)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_cannot_be_written_is_named(request_: BuildRequest, tmp_path: Path, workers: int) -> None:
    """A limit on the size of files says so as a full disk does: of a write, which tells no name."""
    corpus = tmp_path / "long.jsonl"
    corpus.write_text('{"completion": "公民的合法权益受法律保护。"}\n' * 20_000)
    request = replace(request_, corpus=(str(corpus),), workers=workers, part_bytes=600_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*\.shards\.building-.*train-0000"):
            build_shards(request)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("error", [ShardError("disk full"), KeyboardInterrupt()], ids=["disk full", "ctrl-C"])
def test_a_failure_at_the_end_loses_no_part(
    request_: BuildRequest, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(merge, "save_tokenizer", fail)
    with pytest.raises(type(error)):
        build_shards(request_)
    assert not request_.out.exists()
    monkeypatch.undo()
    monkeypatch.setattr(part, "ShardWriter", fail)  # nothing is written again
    said = io.StringIO()
    build_shards(request_, Console(file=said))
    assert "parts are there already" in said.getvalue()
    assert verify(request_.out) == []
    assert [path.name for path in request_.out.parent.iterdir()] == ["shards"]


KILLED_IN_THE_MIDDLE = """
import os, signal, sys, threading, time
from pathlib import Path
from launcher.prepare.build import build_shards
from launcher.prepare.request import BuildRequest

def kill(folder):
    while not list(folder.glob(".shards.records-*/*.json")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    corpus, tokenizer, out = map(Path, sys.argv[1:])
    threading.Thread(target=kill, args=(out.parent,), daemon=True).start()
    build_shards(BuildRequest(corpus=(str(corpus),), tokenizer=tokenizer, out=out, workers=2, validation_share=0.2,
                              part_bytes=600))
"""


def test_a_build_that_is_killed_goes_on_and_comes_to_the_same_bytes(
    request_: BuildRequest, corpus: Path, tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED_IN_THE_MIDDLE)
    arguments = [sys.executable, str(script), str(corpus), str(request_.tokenizer), str(request_.out)]
    # The workers hold the other end of the pipe: this returns when the last of them is gone.
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    ended = subprocess.run(arguments, capture_output=True, timeout=120, env=env)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not request_.out.exists()
    assert not list((tmp_path / "tmp").iterdir())
    small = replace(request_, part_bytes=600)
    said = io.StringIO()
    build_shards(small, Console(file=said))
    assert "parts are there already" in said.getvalue()
    whole = replace(small, out=tmp_path / "whole")
    build_shards(whole)
    assert contents(request_.out) == contents(whole.out)


def test_a_folder_may_have_any_name_and_nothing_is_left_beside_it(
    request_: BuildRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    out = request_.out.with_name("[a-z].*")
    build_shards(replace(request_, out=out))
    assert f"{out}: " in capsys.readouterr().err
    assert list(out.parent.glob(".*")) == []


def test_machines_build_together_and_the_last_completes_the_folder(request_: BuildRequest, tmp_path: Path) -> None:
    tasks = [replace(request_, task=number, tasks=3) for number in range(3)]
    assert [build_shards(task) is None for task in tasks] == [True, True, False]
    alone = replace(request_, out=tmp_path / "alone")
    build_shards(alone)
    assert contents(request_.out) == contents(alone.out)


def test_machines_that_tokenize_with_other_programs_say_so(request_: BuildRequest) -> None:
    """Each waits for parts of its own kind, and nobody would complete the folder."""
    said = io.StringIO()
    for task, encoder in enumerate(("tokenizers", "cached-wordpiece")):
        build_shards(replace(request_, task=task, tasks=2, encoder=encoder), Console(file=said, width=300))
    first, second = (line for line in said.getvalue().splitlines() if "parts are built" in line)
    assert "of another text or encoder" not in first
    assert "of another text or encoder than here (cached-wordpiece" in second


def test_parts_that_another_task_finishes_that_moment_are_not_of_another_program(
    request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their records were not there when records were read, and are when their names are."""
    tasks = [replace(request_, task=number, tasks=2) for number in range(2)]
    assert build_shards(tasks[1]) is None
    read = build.read_record
    monkeypatch.setattr(build, "read_record", lambda *given: None if given[1].number % 2 else read(*given))
    said = io.StringIO()
    assert build_shards(tasks[0], Console(file=said, width=300)) is None
    assert "parts are built" in said.getvalue()
    assert "of another text or encoder" not in said.getvalue()


def test_all_processes_look_for_duplicates_however_few_parts_a_task_builds(
    request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task reads the whole corpus for them."""
    asked: list[int] = []

    def workers(num: int) -> Workers:
        asked.append(num)
        return Workers(1)

    monkeypatch.setattr(build, "Workers", workers)
    for dedupe in (False, True):
        assert build_shards(replace(request_, task=0, tasks=100, workers=3, dedupe=dedupe)) is None
    assert asked == [1, 3]


def test_a_part_whose_text_changed_is_built_again(request_: BuildRequest, tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "changing.jsonl"
    path.write_text("".join(json.dumps({"completion": text}) + "\n" for text in texts), encoding="utf-8")
    request = replace(request_, corpus=(str(path),), task=0, tasks=2)
    assert build_shards(request) is None
    path.write_text(path.read_text(encoding="utf-8").replace("Law 0 ", "Law X "), encoding="utf-8")
    build_shards(replace(request, tasks=1))
    split = open_split(request.out, "train")
    whole = replace(request, tasks=1, out=tmp_path / "whole")
    build_shards(whole)
    assert contents(request.out) == contents(whole.out)
    assert split.num_documents == open_split(whole.out, "train").num_documents


def test_duplicates_are_dropped_wherever_they_are_and_the_first_is_kept(
    request_: BuildRequest, tmp_path: Path, texts: list[str]
) -> None:
    path = tmp_path / "twice.jsonl"
    twice = [*texts, *texts[::-1], texts[3]]
    path.write_text("".join(json.dumps({"completion": text}) + "\n" for text in twice), encoding="utf-8")
    manifest = build_shards(replace(request_, corpus=(str(path),), dedupe=True, workers=2))
    assert manifest is not None
    assert (manifest.filters["kept"], manifest.filters["duplicate"]) == (120, 121)
    split = open_split(request_.out, "train")
    numbers = [split.origin(number).number for number in range(split.num_documents)]
    assert numbers == sorted(numbers)
    assert max(numbers) <= 120


def test_what_was_a_duplicate_of_a_text_that_has_changed_since_is_kept(
    request_: BuildRequest, tmp_path: Path, texts: list[str]
) -> None:
    """The part it lies in was finished, and its own file is as it was."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"

    def write(path: Path, lines: list[str]) -> None:
        path.write_text("".join(json.dumps({"completion": text}) + "\n" for text in lines), encoding="utf-8")

    write(first, texts[:40])
    write(second, [*texts[40:80], texts[7]])
    request = replace(request_, corpus=(str(first), str(second)), dedupe=True, part_bytes=second.stat().st_size)
    assert build_shards(replace(request, task=1, tasks=2)) is None  # the second file's part
    write(first, [*texts[:7], *texts[8:40]])
    build_shards(request)
    assert len(find_documents(open_split(request.out, "train"), [f"{second}:41"])[f"{second}:41"]) == 1
    whole = replace(request, out=tmp_path / "whole")
    build_shards(whole)
    assert contents(request.out) == contents(whole.out)


def test_every_document_knows_its_line_though_parts_begin_in_the_middle(
    request_: BuildRequest, texts: list[str]
) -> None:
    build_shards(request_)
    seen = []
    for name in ("train", "validation"):
        split = open_split(request_.out, name)
        for number in range(split.num_documents):
            origin = split.origin(number)
            text = texts[origin.number - 1]
            assert origin.text_hash == xxhash.xxh3_128_hexdigest(text.encode())
            assert origin.num_chars == len(text)
            seen.append(origin.number)
    assert sorted(seen) == list(range(1, 121))


def test_words_and_sentences_change_no_id(request_: BuildRequest, tmp_path: Path, texts: list[str]) -> None:
    build_shards(request_)
    more = replace(request_, out=tmp_path / "more", words=True, sentences=True)
    build_shards(more)
    plain, told = open_split(request_.out, "train"), open_split(more.out, "train")
    assert [plain.document(n).tolist() for n in range(plain.num_documents)] == [
        told.document(n).tolist() for n in range(told.num_documents)
    ]
    assert told.has_words
    words = np.empty(told.num_tokens, dtype=np.bool_)
    told.read_words(0, words)
    assert 0.1 < words.mean() < 0.9
    # Two Chinese clauses end in 。 and one English in a full stop: a sentence each.
    assert len(told.sequence_starts(0)) == 3


@pytest.mark.parametrize("option", ["words", "sentences"])
def test_an_encoder_that_cannot_tell_places_is_refused_where_they_are_needed(
    request_: BuildRequest, option: str
) -> None:
    wanted = replace(request_, encoder="cached-wordpiece", **{option: True})
    with pytest.raises(TokenizerError, match=rf"does not tell where in the text[\s\S]*or --{option} out"):
        build_shards(wanted)
    manifest = build_shards(replace(wanted, encoder="auto"))
    assert manifest is not None
    assert manifest.encoder.endswith(f": it alone tells where in the text a token lies, as --{option} needs")
    small = build_shards(replace(request_, out=request_.out.with_name("small")))
    assert small is not None
    assert small.encoder.endswith(": it is through with so little text before a faster one is found")


def chosen(request: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """Who is asked for to tokenize a corpus, and the sample that the gate gets."""
    asked: list[tuple[str, list[str]]] = []

    def choose(_: str, __: str, sample: Callable[[], Iterator[str]], wanted: str) -> Choice:
        asked.append((wanted, list(sample())))
        return Choice("tokenizers", "1", "", "")

    monkeypatch.setattr(build, "choose_encoder", choose)
    build_shards(request)
    return asked[0]


def test_the_gate_sees_enough_documents_also_where_a_part_has_few(
    request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FAST_FROM", 0)
    path = tmp_path / "many.jsonl"
    for documents in (150, 400):
        path.write_text("".join(f'{{"completion": "第{number:03}条 Law"}}\n' for number in range(documents)))
        request = replace(request_, corpus=(str(path),), part_bytes=350, overwrite=True)
        wanted, sample = chosen(request, monkeypatch)
        assert wanted == "auto"
        assert len(set(sample)) == len(sample)
        assert min(documents, 200) <= len(sample) < 220


@pytest.mark.parametrize(("fast_from", "wanted"), [(32 << 20, "tokenizers"), (1000, "auto")])
def test_a_data_set_of_the_hub_is_as_large_as_its_files(
    fast_from: int,
    wanted: str,
    request_: BuildRequest,
    tmp_path: Path,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(build, "FAST_FROM", fast_from)
    lines = "".join(f'{{"completion": "{text}"}}\n' for text in texts * 3)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text(lines, encoding="utf-8")
    asked = chosen(replace(request_, corpus=(f"hub:{tmp_path / 'hub'}",)), monkeypatch)
    assert asked == (wanted, (texts * 3)[:200])


def test_filters_count_what_they_drop(request_: BuildRequest, texts: list[str]) -> None:
    shortest = min(map(len, texts))
    manifest = build_shards(replace(request_, filters=FilterOptions(min_chars=shortest + 1)))
    assert manifest is not None
    assert manifest.filters["too_short"] == sum(len(text) == shortest for text in texts)
    assert manifest.settings["min_chars"] == shortest + 1


def test_a_failed_rebuild_keeps_the_old_shards(request_: BuildRequest, tmp_path: Path) -> None:
    build_shards(request_)
    before = contents(request_.out)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"completion": "法律"}\n{', encoding="utf-8")
    with pytest.raises(CorpusError):
        build_shards(replace(request_, corpus=(str(bad),), overwrite=True))
    assert contents(request_.out) == before


def test_shards_inside_the_corpus_folder_are_reused_and_not_read_as_text(
    request_: BuildRequest, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache" / "hidden.json").write_text("{")
    (folder / "corpus.jsonl").write_bytes(corpus.read_bytes())
    inside = replace(request_, corpus=(str(folder),), out=folder / "shards")
    assert build_shards(inside) == build_shards(inside)


def test_a_link_is_built_where_it_points_to(request_: BuildRequest, tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    request_.out.symlink_to(tmp_path / "disk" / "real")
    build_shards(request_)
    assert request_.out.is_symlink()
    assert verify(tmp_path / "disk" / "real") == []
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "shards"}


def test_a_place_that_cannot_be_written_is_the_users_to_change(request_: BuildRequest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"the folder cannot be made[\s\S]*fix: +give another --out"):
        build_shards(replace(request_, out=tmp_path / "file" / "shards"))


def test_the_same_request_again_is_reused_and_another_refused(request_: BuildRequest) -> None:
    build_shards(request_)
    stamp = (request_.out / "manifest.json").stat().st_mtime_ns
    said = io.StringIO()
    build_shards(replace(request_, workers=2), Console(file=said))
    assert "re-used" in said.getvalue()
    assert (request_.out / "manifest.json").stat().st_mtime_ns == stamp
    other = replace(request_, validation_share=0.3)
    with pytest.raises(ShardError, match=r"made from other text[\s\S]*fix: +give another --out, or --overwrite"):
        build_shards(other)
    assert build_shards(replace(other, overwrite=True)).settings["validation_share"] == 0.3
    assert [path.name for path in request_.out.parent.iterdir()] == ["shards"]


def test_overwrite_never_replaces_what_are_not_shards(request_: BuildRequest) -> None:
    request_.out.mkdir()
    (request_.out / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardError, match="something else under this name"):
        build_shards(replace(request_, overwrite=True))
    assert (request_.out / "thesis.txt").exists()


def test_the_name_of_a_special_token_in_a_text_is_text(request_: BuildRequest, tmp_path: Path) -> None:
    path = tmp_path / "tags.jsonl"
    path.write_text(json.dumps({"completion": "a [SEP] b [MASK] c"}), encoding="utf-8")
    manifest = build_shards(replace(request_, corpus=(str(path),), validation_share=0.0))
    tokens = open_split(request_.out, "train").document(0).tolist()
    special = manifest.tokenizer.special
    assert tokens.count(special.sep or -1) == 1  # the document's end
    assert special.mask not in tokens


@pytest.mark.parametrize(
    ("texts", "changes", "says", "fix"),
    [
        ([" ", 3], {}, r"of 2 records none is left to train on \(1 empty, 1 not_text\)", "text field"),
        (["法", "律", 3], {"filters": FilterOptions(min_chars=2)}, "2 too_short", "lower --min-chars"),
        (["法律", "律法", 3], {"filters": FilterOptions(max_chars=1)}, "2 too_long", "raise --max-chars"),
        (["法", "律", 3], {"validation_share": 0.9999999}, "of 3 records", "a smaller share"),
    ],
    ids=["no text", "too short", "too long", "all held out"],
)
def test_a_corpus_with_nothing_to_train_on_is_refused_with_what_to_do(
    request_: BuildRequest, tmp_path: Path, texts: list[object], changes: dict[str, Any], says: str, fix: str
) -> None:
    path = tmp_path / "blank.jsonl"
    path.write_text("".join(json.dumps({"completion": text}) + "\n" for text in texts), encoding="utf-8")
    with pytest.raises(CorpusError, match=rf"{says}[\s\S]*fix: .*{fix}"):
        build_shards(replace(request_, corpus=(str(path),), **changes))
    assert not request_.out.exists()


def test_a_request_checks_itself(request_: BuildRequest) -> None:
    with pytest.raises(UsageError, match=r"1\.5 is not a share"):
        replace(request_, validation_share=1.5)
    with pytest.raises(UsageError, match="workers is 0"):
        replace(request_, workers=0)
    with pytest.raises(UsageError, match=r"'\.' names no folder to make"):
        replace(request_, out=Path())


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.idx", "tokenizer/tokenizer.json"])
def test_one_changed_byte_is_found_by_verify(request_: BuildRequest, name: str) -> None:
    build_shards(request_)
    path = request_.out / name
    raw = bytearray(path.read_bytes())
    place = raw.index("法".encode()) if name.endswith("json") else len(raw) // 2
    raw[place] ^= 1
    path.write_bytes(bytes(raw))
    (problem,) = verify(request_.out)
    assert str(path) in problem


def test_a_cut_or_missing_file_is_found_at_open(request_: BuildRequest) -> None:
    build_shards(request_)
    path = request_.out / "train-00000.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    message = rf"the file has {size - 2} bytes, {size} were written[\s\S]*{path.name}[\s\S]*fix: +restore"
    with pytest.raises(ShardError, match=message):
        open_split(request_.out, "train")
    path.unlink()
    with pytest.raises(ShardError, match="missing"):
        open_split(request_.out, "train")
    with pytest.raises(ShardError, match="the shards here are damaged"):
        build_shards(request_)
    with pytest.raises(ShardError, match="did you mean 'train'"):
        open_split(request_.out, "trian")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "cannot be read", id="not JSON"),
        pytest.param("[]", "has version None", id="not an object"),
        pytest.param('{"format_version": 99}', "has version 99, this program reads 3", id="another version"),
        pytest.param('{"format_version": 3}', "its own checksum differs", id="a field is missing"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match=message):
        read_manifest(tmp_path)


def test_a_folder_without_shards_names_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"fix: +pretrain prepare CORPUS --tokenizer DIR --out"):
        read_manifest(tmp_path)


def test_a_tokenizer_that_does_not_know_the_text_is_told_loudly(request_: BuildRequest, tmp_path: Path) -> None:
    path = tmp_path / "strange.jsonl"
    path.write_text('{"completion": "公民 Ω 龘 Ω"}\n' * 5, encoding="utf-8")
    said = io.StringIO()
    manifest = build_shards(replace(request_, corpus=(str(path),), validation_share=0.0), Console(file=said))
    assert manifest is not None
    assert manifest.splits["train"].num_unknown >= 10
    assert "of the tokens are unknown" in said.getvalue()
    assert "Ω" in said.getvalue()


def test_a_build_that_finished_no_part_leaves_nothing_behind(request_: BuildRequest, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"completion": "a"}\n{bad\n')
    with pytest.raises(CorpusError, match=r"bad\.jsonl:2"):
        build_shards(replace(request_, corpus=(str(path),)))
    assert [left.name for left in tmp_path.iterdir()] == ["bad.jsonl"]
