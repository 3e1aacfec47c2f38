"""Data sets of a hub: the real `pretrain prepare`, `datasets` and `huggingface_hub` against a hub on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import OWNER_NAME, Hub, hub_of

from launcher.shards.manifest import read_manifest
from launcher.shards.reader import open_split
from launcher.shards.search import find_documents
from launcher.shards.verify import verify

pytest.importorskip("datasets")


def named(kind: str) -> list[str]:
    return [f"data/train-{number:05d}-of-00004.{kind}" for number in range(4)]


FILES = named("jsonl")
BY_WHOM = pytest.mark.parametrize("hub", ["jsonl", "parquet"], indirect=True)
TEST_FILE = "data/test-00000-of-00001.jsonl"
README = b"---\nlicense: cc0-1.0\n---\n# Law\n"
BUILD = """
import sys
from pathlib import Path
from launcher.cli import main
from launcher.prepare import build

build.MIN_PART_BYTES = build.MAX_PART_BYTES = 1  # every file is a part
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def as_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"completion": text, "source": "law"}) + "\n" for text in texts).encode()


def as_parquet(texts: list[str]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"completion": texts, "source": ["law"] * len(texts)}), sink, row_group_size=7)
    return bytes(sink.getvalue().to_pybytes())


@pytest.fixture(params=["jsonl"])
def hub(request: pytest.FixtureRequest, texts: list[str]) -> Iterator[Hub]:
    """The texts in four files, read by this program (JSON) or by `datasets` (all others)."""
    written = as_lines if request.param == "jsonl" else as_parquet
    files = {name: written(texts[30 * number : 30 * number + 30]) for number, name in enumerate(named(request.param))}
    with hub_of({**files, "README.md": README}) as hub:
        yield hub


class Builds:
    """Builds of a hub's data set in one folder, each a process of its own."""

    def __init__(self, hub: Hub, folder: Path, tokenizer: Path) -> None:
        self.hub, self.folder, self._tokenizer = hub, folder, tokenizer
        self.files = [name for name in hub.files if name.startswith("data/train")]
        self._script = folder / "prepare.py"
        self._script.write_text(BUILD)
        self.variables: dict[str, str] = {}
        """Of the environment, beside those by which the hub is found."""

    def start(self, out: str = "shards", workers: int = 1, word: str = f"hub:{OWNER_NAME}") -> subprocess.Popen[str]:
        words = [word, "--tokenizer", str(self._tokenizer), "--out", str(self.folder / out), "--workers", str(workers)]
        return subprocess.Popen(
            [sys.executable, str(self._script), "prepare", *words, "--validation-share", "0.2"],
            env={**os.environ, **self.hub.environment(self.folder / "cache"), **self.variables},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, out: str = "shards", workers: int = 1, word: str = f"hub:{OWNER_NAME}") -> tuple[int, str]:
        process = self.start(out, workers, word)
        _, told = process.communicate(timeout=120)
        return process.returncode, told

    def contents(self, out: str = "shards") -> dict[str, bytes]:
        folder = self.folder / out
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def finished(self) -> list[str]:
        return sorted(path.name[:10] for path in self.folder.glob(".shards.records-*/*.json"))


@pytest.fixture
def builds(hub: Hub, tmp_path: Path, tokenizer_folder: Path) -> Builds:
    return Builds(hub, tmp_path, tokenizer_folder)


@BY_WHOM
def test_every_file_is_a_part_and_the_documents_keep_the_order_of_the_stream(builds: Builds, texts: list[str]) -> None:
    assert (builds.run()[0], builds.run("two", workers=2)[0]) == (0, 0)
    assert builds.contents() == builds.contents("two")
    manifest = read_manifest(builds.folder / "shards")
    address = f"hf://datasets/{OWNER_NAME}@{builds.hub.revision}"
    assert [source.path for source in manifest.sources] == [f"{address}/{name}" for name in builds.files]
    assert [[entry.source for entry in part] for part in manifest.parts] == [[0], [1], [2], [3]]
    split = open_split(builds.folder / "shards", "train")
    origins = [split.origin(number) for number in range(split.num_documents)]
    places = [(builds.files.index(origin.source.removeprefix(f"{address}/")), origin.number) for origin in origins]
    assert places == sorted(places)
    assert len(places) == manifest.splits["train"].num_documents > 80
    name = f"{address}/{builds.files[2]}:7"
    held_out = open_split(builds.folder / "shards", "validation")
    assert len(find_documents(split, [name])[name] + find_documents(held_out, [name])[name]) == 1


@BY_WHOM
def test_killed_with_two_workers_and_started_again_finished_files_are_kept_and_the_bytes_are_the_same(
    builds: Builds,
) -> None:
    assert builds.run("whole")[0] == 0
    builds.hub.held = {builds.files[3]}
    process = builds.start(workers=2)
    while len(builds.finished()) < 3 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert builds.finished() == ["part-00000", "part-00001", "part-00002"]
    builds.hub.held = set()
    builds.hub.reads.clear()
    code, told = builds.run(workers=2)
    assert (code, "3 of 4 parts are there already" in told) == (0, True)
    assert set(builds.hub.reads) - {builds.files[0]} == {builds.files[3]}  # `datasets` asks the first for its columns
    assert builds.contents() == builds.contents("whole")


def test_a_connection_that_is_cut_is_made_again(builds: Builds) -> None:
    assert builds.run("whole")[0] == 0
    builds.hub.cuts = {FILES[2]: 1}
    assert builds.run()[0] == 0
    assert builds.hub.cuts == {FILES[2]: 0}
    assert builds.contents() == builds.contents("whole")


@BY_WHOM
def test_a_hub_that_is_lost_on_the_way_asks_for_the_same_command_again(builds: Builds) -> None:
    builds.hub.refused = {builds.files[2]: 507}
    code, told = builds.run()
    assert code == 75
    assert "RequeueError: the connection was lost, and did not come back" in told
    assert f"{builds.files[2]}\n  fix:   run the same command again" in told
    assert builds.finished() == ["part-00000", "part-00001"]
    builds.hub.refused = {}
    code, told = builds.run()
    assert (code, "2 of 4 parts are there already" in told) == (0, True)
    assert verify(builds.folder / "shards") == []


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        pytest.param(429, 75, "RequeueError: the hub cannot answer now: HfHubHTTPError: 429", id="asked too often"),
        pytest.param(503, 75, "RequeueError: the hub cannot answer now: HfHubHTTPError: Server error '503", id="down"),
        pytest.param(403, 2, "CorpusError: the data set cannot be read: HfHubHTTPError: 403", id="not for this user"),
    ],
)
def test_a_hub_that_is_busy_when_it_is_first_asked_is_no_mistake_of_the_user(
    status: int, code: int, message: str, builds: Builds
) -> None:
    """All tasks of an array ask at once."""
    builds.hub.refused = {"": status}
    found, told = builds.run()
    assert (found, message in told) == (code, True), told


def test_a_file_that_may_not_be_read_is_the_users_to_see_to(builds: Builds) -> None:
    builds.hub.refused = {FILES[1]: 403}
    code, told = builds.run()
    assert code == 2
    assert "CorpusError: the data set cannot be read: HfHubHTTPError: 403 Forbidden" in told
    assert FILES[1] in told


def test_a_data_set_that_changes_between_two_starts_is_not_mixed(builds: Builds, texts: list[str]) -> None:
    builds.hub.refused = {FILES[3]: 507}
    assert builds.run()[0] == 75
    builds.hub.refused = {}
    builds.hub.files[FILES[1]] = as_lines(["另一条", *texts[:5]])
    code, told = builds.run()
    assert (code, "2 of 4 parts are there already; 1 of the others are of another text" in told) == (0, True)
    assert builds.run("new")[0] == 0
    assert builds.contents() == builds.contents("new")


def test_shards_are_used_again_until_a_file_they_were_made_from_changes(builds: Builds) -> None:
    assert builds.run()[0] == 0
    before = builds.contents()
    builds.hub.files["README.md"] = README + b"More.\n"  # another commit
    code, told = builds.run()
    assert (code, "re-used" in told) == (0, True)
    changed = builds.hub.files[FILES[1]]
    builds.hub.files[FILES[1]] = changed.replace(b"Law 40", b"LAW 40")  # of the same size
    code, told = builds.run()
    assert (code, "ShardError: the shards here were made from other text" in told) == (2, True)
    assert builds.contents() == before


def test_a_file_more_is_another_data_set(builds: Builds) -> None:
    assert builds.run()[0] == 0
    builds.hub.files["data/train-00004-of-00004.jsonl"] = as_lines(["另一条"])
    code, told = builds.run()
    assert (code, "ShardError: the shards here were made from other text" in told) == (2, True)


def test_a_configuration_that_reads_the_same_file_otherwise_is_another_data_set(builds: Builds) -> None:
    told = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files: x.json\n  field: {name}\n" for name in ("one", "two")
    )
    fields = {"one": [{"completion": "law"}] * 20, "two": [{"completion": "two laws"}] * 30}
    builds.hub.files = {"x.json": json.dumps(fields).encode(), "README.md": f"{told}---\n".encode()}
    word = f"hub:{OWNER_NAME}"
    assert builds.run(word=f"{word}/one")[0] == 0
    assert read_manifest(builds.folder / "shards").filters["read"] == 20
    code, said = builds.run(word=f"{word}/two")
    assert (code, "ShardError: the shards here were made from other text" in said) == (2, True)
    assert "re-used" in builds.run(word=f"{word}/one")[1]
    builds.hub.files["README.md"] = f"{told.replace('field: one', 'field: two')}---\n".encode()
    code, said = builds.run(word=f"{word}/one")
    assert (code, "ShardError: the shards here were made from other text" in said) == (2, True)


@pytest.mark.parametrize("name", ["wikipedia-cn-20230720-filtered.json", "x.json.gz"])
def test_one_array_is_read_like_lines(name: str, builds: Builds, texts: list[str]) -> None:
    import gzip

    builds.hub.files = {FILES[0]: as_lines(texts)}
    assert builds.run("lines")[0] == 0
    raw = json.dumps([{"completion": text} for text in texts], indent=4).encode()
    builds.hub.files = {name: gzip.compress(raw) if name.endswith(".gz") else raw}
    assert builds.run()[0] == 0
    arrays, lines = builds.contents(), builds.contents("lines")
    shards = [path for path in arrays if path.endswith((".bin", ".idx"))]
    assert len(shards) == 4
    assert all(arrays[path] == lines[path] for path in shards)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        pytest.param(f"hub:{OWNER_NAME}@dev", "there is no split 'dev'", id="the split"),
        pytest.param(f"hub:{OWNER_NAME}/zh", "BuilderConfig 'zh' not found", id="the configuration"),
        pytest.param("hub:pleisto/nothing", "RepositoryNotFoundError", id="the data set"),
    ],
)
def test_what_the_hub_does_not_have_is_told(word: str, message: str, builds: Builds) -> None:
    code, told = builds.run(word=word)
    assert code == 2
    assert told.startswith("CorpusError: ")
    assert message in told
    assert f"where: {word}" in told


@pytest.mark.parametrize(
    "variables",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"HF_DATASETS_OFFLINE": "yes"},
        {"TRANSFORMERS_OFFLINE": "ON", "HF_HUB_OFFLINE": ""},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_who_is_not_to_reach_the_hub_is_told_by_what(variables: dict[str, str], builds: Builds) -> None:
    builds.variables = variables
    code, told = builds.run()
    assert code == 2
    assert told.startswith(f"CorpusError: the hub is not to be reached: {next(iter(variables))} is set\n")


def test_an_endpoint_with_a_slash_behind_it_is_told(builds: Builds) -> None:
    endpoint = builds.hub.environment(builds.folder)["HF_ENDPOINT"]
    builds.variables = {"HF_ENDPOINT": f"{endpoint}/"}
    code, told = builds.run()
    assert (code, f"HF_ENDPOINT is {endpoint}/\n" in told, f"fix:   HF_ENDPOINT={endpoint}\n" in told) == (
        2,
        True,
        True,
    )


def test_lines_may_have_other_keys_than_those_of_the_first_file_which_may_be_empty(builds: Builds) -> None:
    builds.hub.files = {
        FILES[0]: b"",
        FILES[1]: as_lines(["法律"] * 20),
        FILES[2]: b'{"completion": "law", "score": [1]}\n',
        FILES[3]: b'\xef\xbb\xbf\n{"score": NaN, "completion": "law"}',  # as Python writes it
    }
    code, told = builds.run()
    assert code == 0, told
    assert read_manifest(builds.folder / "shards").filters["read"] == 22


def test_a_first_line_may_be_as_long_as_a_book(builds: Builds) -> None:
    builds.hub.files = {
        FILES[0]: as_lines(["法律"] * 20),
        FILES[1]: json.dumps({"score": [1], "completion": "law " * (1 << 20)}).encode() + b"\n" + as_lines(["law"]),
    }
    code, told = builds.run()
    assert code == 0, told
    assert read_manifest(builds.folder / "shards").filters["read"] == 22


def test_one_object_over_many_lines_is_left_to_datasets(builds: Builds) -> None:
    builds.hub.files = {"a.json": json.dumps({"completion": "法律" * 50}, indent=4).encode()}
    assert builds.run()[0] == 0
    assert read_manifest(builds.folder / "shards").filters["read"] == 1


def test_the_other_split_is_another_stream(builds: Builds, texts: list[str]) -> None:
    builds.hub.files[TEST_FILE] = as_lines(texts[:20])
    assert builds.run(word=f"hub:{OWNER_NAME}@test")[0] == 0
    assert read_manifest(builds.folder / "shards").filters["read"] == 20
    assert FILES[3] not in builds.hub.reads
