"""The files of a corpus: what is found, what each is taken for, and how it is cut."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from launcher.errors import CorpusError
from launcher.prepare.hub import HubShard
from launcher.prepare.sources import Segment, SourceFile, cut, find_sources


def write_arrow(path: Path, num_batches: int, encode: bool = False) -> None:
    """A stream of record batches of two rows; `encode` gives values once and refers to them."""
    table = pa.table({"completion": [str(number) for number in range(2 * num_batches)]})
    if encode:
        table = pa.table({"completion": table["completion"].dictionary_encode()})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def save_dataset(folder: Path, *num_batches: int) -> Path:
    """As `datasets.Dataset.save_to_disk` leaves a folder."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(num_batches):05d}.arrow" for number in range(len(num_batches))]
    for name, count in zip(names, num_batches, strict=True):
        write_arrow(folder / name, count)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def names(corpus: Path | str, *, inside: Path | None = None) -> list[str]:
    return [Path(source.name).name for source in find_sources([str(corpus)], inside=inside)]


@pytest.mark.parametrize(
    ("name", "raw", "kind", "compression"),
    [
        pytest.param("a.jsonl", b'{"completion": "a"}', "lines", None, id="JSONL"),
        pytest.param("a.json", b'{"completion": "a"}', "lines", None, id="lines called .json"),
        pytest.param("a.jsonl", b"[\n{}\n]", "array", None, id="an array called .jsonl"),
        pytest.param("a.json", b"\xef\xbb\xbf\n\t [", "array", None, id="an array behind a mark and white space"),
        pytest.param("a.json", b" " * 10_000 + b"[", "array", None, id="an array behind much white space"),
        pytest.param("part-0", b"{}", "lines", None, id="a name that says nothing"),
        pytest.param("a.jsonl", b"", "lines", None, id="an empty file"),
        pytest.param("a.txt", b"[1] is no array", "text", None, id="text that begins like an array"),
        pytest.param("a.JSONL", b"{}", "lines", None, id="a shouted suffix"),
        pytest.param("a.json.gz", gzip.compress(b"[]"), "array", "gzip", id="an array inside gzip"),
        pytest.param("a.gz", gzip.compress(b"{}"), "lines", "gzip", id="gzip of who knows what"),
        pytest.param("a.jsonl.xz", lzma.compress(b"{}"), "lines", "xz", id="xz"),
        pytest.param("a.json.zst", pa.compress(b"[]", "zstd", asbytes=True), "array", "zstd", id="zstd"),
        pytest.param("a.json.zstd", pa.compress(b"{}", "zstd", asbytes=True), "lines", "zstd", id="zstd in full"),
        pytest.param("a.txt.gz", gzip.compress(b"[]"), "text", "gzip", id="text inside gzip"),
    ],
)
def test_a_file_is_what_its_suffix_or_its_first_character_says(
    tmp_path: Path, name: str, raw: bytes, kind: str, compression: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    (source,) = find_sources([str(path)])
    assert source == SourceFile(str(path), kind, compression, len(raw), path.stat().st_mtime_ns)  # type: ignore[arg-type]


def test_tables_tell_where_they_can_be_cut(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"completion": ["a"] * 10}), tmp_path / "a.parquet", row_group_size=4)
    write_arrow(tmp_path / "b.arrow", num_batches=5)
    write_arrow(tmp_path / "c.arrow", num_batches=5, encode=True)
    found = find_sources([str(tmp_path)])
    assert [(source.kind, source.num_units) for source in found] == [("parquet", 3), ("arrow", 5), ("arrow", None)]


def test_files_folders_and_globs_are_found_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "c.txt", "sub/d.jsonl", "e.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    words = [str(tmp_path), str(tmp_path / "a.json"), str(tmp_path / "*.md")]
    assert [Path(source.name).name for source in find_sources(words)] == [
        "a.json",
        "b.jsonl",
        "c.txt",
        "d.jsonl",
        "e.md",
    ]


def test_folders_behind_links_and_globs_are_read_and_a_link_back_is_no_end(tmp_path: Path) -> None:
    for name in ("elsewhere/a.jsonl", "corpus/own/b.jsonl", "corpus/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "corpus" / "linked").symlink_to("../elsewhere")
    for name in ("back", "again"):  # two, or the system would end it after forty
        (tmp_path / "elsewhere" / name).symlink_to("../corpus")
    for word in (tmp_path / "corpus", tmp_path / "corp*", tmp_path / "corpus" / "*"):
        assert sorted(names(word)) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_link_that_leads_nowhere_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "gone").symlink_to("nothing")
    assert names(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("word", ["", "*.gz", "b.jsonl.gz"], ids=["folder", "glob", "path"])
def test_a_part_of_the_corpus_whose_link_leads_nowhere_is_told(tmp_path: Path, word: str) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl.gz").symlink_to("nothing")
    with pytest.raises(CorpusError, match=r"leads nowhere[\s\S]*b\.jsonl\.gz"):
        find_sources([str(tmp_path / word)])


@pytest.mark.parametrize("word", ["", "shut", "shut/a.jsonl", "*/a.jsonl"])
def test_a_folder_that_may_not_be_looked_into_is_told(
    tmp_path: Path, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be listed, but not entered: whether its files are files, nobody is told."""
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut" / "a.jsonl").write_text("")
    stat = Path.stat

    def refuse(self: Path, **options: bool) -> os.stat_result:
        if self.parent.name == "shut":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(CorpusError, match=r"folder cannot be looked into: Permission denied\n  where: .*shut\n"):
        find_sources([str(tmp_path / word)])


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl.bz2", bz2.compress(b"{}"), r"bzip2, which is not read here[\s\S]*bzcat"),
        ("a.txt.zip", b"PK\x03\x04 and so on", r"zip, which is not read here[\s\S]*unzip"),
        ("a.jsonl.lz4", b"\x04\x22\x4d\x18", r"packed as \.lz4 are not read[\s\S]*zstd or xz"),
        ("a.jsonl", gzip.compress(b"{}"), r"gzip, and its name does not say so[\s\S]*end in \.gz"),
        ("a.json", pa.compress(b"[]", "zstd", asbytes=True), r"zstd[\s\S]*end in \.zst"),
        ("a.json", b"PAR1\x15\x04", r"parquet[\s\S]*end in \.parquet"),
    ],
    ids=["bzip2", "zip", "lz4", "gzip unnamed", "zstd unnamed", "parquet unnamed"],
)
def test_packed_text_that_cannot_be_read_is_told_and_not_passed_over(
    tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    (tmp_path / "b.jsonl").write_text("{}")
    (tmp_path / name).write_bytes(raw)
    for word in (tmp_path, tmp_path / name):
        with pytest.raises(CorpusError, match=message):
            find_sources([str(word)])


def test_a_file_is_read_once_under_whatever_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    monkeypatch.chdir(tmp_path)
    words = ["a.jsonl", "./a.jsonl", str(tmp_path / "a.jsonl"), "b.jsonl", "."]
    assert [source.name for source in find_sources(words)] == ["a.jsonl"]


def test_the_order_given_is_kept(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("")
    assert [source.name[-1] for source in find_sources([str(tmp_path / "b"), str(tmp_path / "a")])] == ["b", "a"]


def test_hidden_files_and_the_shards_inside_a_corpus_are_left_alone(tmp_path: Path) -> None:
    for name in ("a.jsonl", ".b.jsonl", ".cache/c.jsonl", "shards/manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert names(tmp_path, inside=tmp_path / "shards") == ["a.jsonl"]


def test_a_hidden_folder_is_read_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / ".mine").mkdir()
    (tmp_path / ".mine" / "a.jsonl").write_text("{}")
    assert names(tmp_path / ".mine") == ["a.jsonl"]


@pytest.mark.parametrize("word", ["nothing.jsonl", "*.nothing", "empty"])
def test_a_corpus_that_is_not_there_is_refused(tmp_path: Path, word: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"(no such file|folder holds no)[\s\S]*fix:"):
        find_sources([str(tmp_path / word)])


def test_a_saved_data_set_is_one_source_named_found_in_a_folder_or_by_a_glob(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "sets" / "one", 2, 3)
    for word in (folder, tmp_path / "sets", tmp_path / "sets" / "*"):
        (source,) = find_sources([str(word)])
        assert (source.name, source.kind, source.num_units) == (str(folder), "arrow", 5)
        assert source.num_bytes == sum(file.stat().st_size for file in folder.glob("*.arrow"))


def test_of_a_saved_data_set_of_several_splits_the_train_split_is_read(tmp_path: Path) -> None:
    train = save_dataset(tmp_path / "all" / "train", 1)
    save_dataset(tmp_path / "all" / "test", 1)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (source,) = find_sources([str(tmp_path / "all")])
    assert source.name == str(train)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        pytest.param({}, r"names no _data_files", id="no files"),
        pytest.param(
            {"_data_files": [{"filename": "gone.arrow"}]}, r"cannot be read: No such file", id="a file is gone"
        ),
        pytest.param(
            {"_data_files": [], "_indices_files": [{"filename": "i.arrow"}]}, r"selection by index", id="a selection"
        ),
    ],
)
def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path: Path, state: object, message: str) -> None:
    folder = save_dataset(tmp_path / "one", 1)
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CorpusError, match=message + r"[\s\S]*where: .*one[\s\S]*fix:"):
        find_sources([str(folder)])


def test_a_saved_data_set_without_a_train_split_names_those_it_has(tmp_path: Path) -> None:
    save_dataset(tmp_path / "test", 1)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "dev"]}')
    with pytest.raises(CorpusError, match=r"no train split, only test, dev[\s\S]*fix:[\s\S]*/test"):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        pytest.param("a.parquet", b"PAR1, but not for long", id="no parquet"),
        pytest.param("a.parquet", b"", id="empty parquet"),
        pytest.param("a.arrow", b"no arrow either", id="no arrow"),
        pytest.param("a.arrow", b"", id="empty arrow"),
        pytest.param("a.jsonl.gz", b"no gzip", id="no gzip"),
        pytest.param("a.jsonl.zst", b"no zstd", id="no zstd"),
        pytest.param("a.jsonl.xz", b"no xz", id="no xz"),
        pytest.param("a.jsonl.gz", b"", id="empty gzip"),
        pytest.param("a.jsonl.zst", b"", id="empty zstd"),
        pytest.param("a.jsonl.xz", b"", id="empty xz"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(CorpusError, match=r"damaged or cut off[\s\S]*where: .*a\.[\s\S]*fix:"):
        find_sources([str(tmp_path / name)])


@pytest.mark.parametrize("end", [8, 20, 400], ids=["the mark of the end", "the end of a batch", "a batch"])
def test_an_arrow_file_that_is_cut_off_is_named(tmp_path: Path, end: int) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(path, num_batches=5)
    path.write_bytes(path.read_bytes()[:-end])
    with pytest.raises(CorpusError, match=r"damaged or cut off[\s\S]*a\.arrow"):
        find_sources([str(path)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(CorpusError, match=r"Permission denied[\s\S]*a\.jsonl"):
        find_sources([str(path)])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        pytest.param("hub:", r"this names no data set", id="nothing"),
        pytest.param("hub:a/b/c/d", r"this names no data set", id="too much"),
        pytest.param("hub:owner/name@", r"no split stands behind the @", id="no split"),
        pytest.param("hub:./nowhere", r"there is no such folder", id="a folder that is not there"),
    ],
)
def test_a_hub_name_that_cannot_be_is_refused_without_reaching_out(word: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message + r"[\s\S]*fix:   write hub:OWNER/NAME"):
        find_sources([word])


def shard(num_bytes: int) -> SourceFile:
    return SourceFile("a", "hub", None, num_bytes, 0, hub=HubShard("hub:o/n", "c", "a", 0, 1, num_bytes, ""))


def lines(*sizes: int) -> list[SourceFile]:
    return [SourceFile(f"{number}.jsonl", "lines", None, size, 0) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sources", "parts"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param(lines(100), [(Segment(0, 0, 100),)], id="a file of a part's size stays whole"),
        pytest.param(lines(0), [(Segment(0, 0, 0),)], id="an empty file is read all the same"),
        pytest.param(lines(250), [(Segment(0, i, j),) for i, j in ((0, 83), (83, 166), (166, 250))], id="a large one"),
        pytest.param(
            lines(40, 40, 40), [(Segment(0, 0, 40), Segment(1, 0, 40)), (Segment(2, 0, 40),)], id="small ones together"
        ),
        pytest.param(
            [SourceFile("a", "array", None, 900, 0), SourceFile("b", "lines", "gzip", 900, 0)],
            [(Segment(0, 0, 900),), (Segment(1, 0, 900),)],
            id="what can only be read from its beginning stays whole",
        ),
        pytest.param(
            [SourceFile("a", "parquet", None, 500, 0, num_units=5)],
            [(Segment(0, 0, 1),), (Segment(0, 1, 2),), (Segment(0, 2, 3),), (Segment(0, 3, 4),), (Segment(0, 4, 5),)],
            id="row groups of a part's size",
        ),
        pytest.param(
            [SourceFile("a", "arrow", None, 90, 0, num_units=9)], [(Segment(0, 0, 9),)], id="record batches of a few"
        ),
        pytest.param(
            [SourceFile("a", "parquet", None, 90, 0, num_units=0)], [], id="a table without rows has nothing to read"
        ),
        pytest.param(
            [shard(40), shard(40), shard(900)],
            [(Segment(0, 0, 40), Segment(1, 0, 40)), (Segment(2, 0, 900),)],
            id="files of the hub stay whole",
        ),
        pytest.param(
            [shard(0), shard(0)],
            [(Segment(0, 0, 0),), (Segment(1, 0, 0),)],
            id="of which nobody says how large each is",
        ),
    ],
)
def test_a_corpus_is_cut_into_parts_of_about_a_size(
    sources: list[SourceFile], parts: list[tuple[Segment, ...]]
) -> None:
    assert cut(sources, 100) == parts


def test_text_is_cut_where_its_lines_are_documents() -> None:
    sources = [SourceFile("a.txt", "text", None, 250, 0)]
    assert [len(cut(sources, 100, txt)) for txt in ("file", "blank", "line")] == [1, 1, 3]
