"""Which records are kept: each reason is counted, and what the user's function does wrong is the user's to read."""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import CorpusError, UsageError
from launcher.prepare.filters import FilterOptions, Filters

USERS = """
LEAST = 2

def long_enough(record):
    return len(record["completion"]) >= LEAST

def good(record):
    return record.get("score", 0)

def breaks(record):
    return record["lang"] == "zh"

def leaves(record):
    raise SystemExit(0)

def undecided(record):
    import numpy
    return numpy.array([True, False])

class Truthful:
    def __call__(self, record):
        return True

of_a_class = Truthful()
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of the user's in the current folder, with a name of its own."""
    monkeypatch.chdir(tmp_path)
    name = f"users_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(USERS)
    return name


def run(options: FilterOptions, *records: Any) -> tuple[list[str | None], dict[str, int]]:
    counts: Counter[str] = Counter()
    filters = Filters(options, "completion", counts)
    return [filters.accept(record, lambda: "x.jsonl:7") for record in records], dict(counts)


@pytest.mark.parametrize(
    ("options", "text", "reason"),
    [
        pytest.param(FilterOptions(), "一", "kept", id="a text"),
        pytest.param(FilterOptions(), "", "empty", id="no characters"),
        pytest.param(FilterOptions(), " \n\u3000", "empty", id="white space only, an ideographic one among it"),
        pytest.param(FilterOptions(), None, "not_text", id="null"),
        pytest.param(FilterOptions(), 7, "not_text", id="a number"),
        pytest.param(FilterOptions(), ["a"], "not_text", id="a list"),
        pytest.param(FilterOptions(min_chars=3), "第一", "too_short", id="one below the minimum, in characters"),
        pytest.param(FilterOptions(min_chars=3), "第一条", "kept", id="the minimum"),
        pytest.param(FilterOptions(max_chars=3), "第一条", "kept", id="the maximum"),
        pytest.param(FilterOptions(max_chars=3), "abcd", "too_long", id="one above the maximum"),
        pytest.param(FilterOptions(min_chars=3), "  ", "empty", id="empty comes before too short"),
    ],
)
def test_a_record_is_kept_or_counted_under_one_reason(options: FilterOptions, text: Any, reason: str) -> None:
    texts, counts = run(options, {"completion": text})
    assert texts == [text if reason == "kept" else None]
    assert counts == {"read": 1, reason: 1}


@pytest.mark.parametrize("mark", [":", "."])
def test_the_users_function_sees_the_record_and_its_answer_counts_as_true_or_false(module: str, mark: str) -> None:
    records = [{"completion": "a", "score": 1}, {"completion": "b"}, {"completion": "c", "score": [0]}]
    texts, counts = run(FilterOptions(keep=f"{module}{mark}good"), *records)
    assert texts == ["a", None, "c"]
    assert counts == {"read": 3, "kept": 2, "rejected": 1}


def test_anything_that_can_be_called_will_do(module: str) -> None:
    assert run(FilterOptions(keep=f"{module}:of_a_class"), {"completion": "a"})[0] == ["a"]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        pytest.param("good", r"'good' names no function[\s\S]*module:function", id="no module"),
        pytest.param("no_such_module:good", r"no_such_module cannot be imported[\s\S]*ModuleNotFoundError", id="typo"),
        pytest.param("{module}:god", r"has no function 'god'[\s\S]*did you mean 'good'", id="a typo in the function"),
        pytest.param("{module}:number", r"has no function 'number'[\s\S]*fix:", id="no callable"),
        pytest.param("..:good", r"cannot be imported[\s\S]*fix:", id="no module's name"),
    ],
)
def test_a_function_that_is_not_there_is_refused_before_anything_is_read(module: str, keep: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(FilterOptions(keep=keep.format(module=module)))


@pytest.mark.parametrize(
    ("source", "error"),
    [("1/0", "ZeroDivisionError"), ("import sys; sys.exit(0)", "SystemExit")],
    ids=["error", "exit"],
)
def test_a_module_that_breaks_when_imported_is_named(module: str, source: str, error: str) -> None:
    Path(f"broken_{module}.py").write_text(source)
    with pytest.raises(UsageError, match=rf"broken_\w+ cannot be imported: {error}"):
        run(FilterOptions(keep=f"broken_{module}:good"))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        pytest.param("breaks", r":breaks failed on the record: KeyError: 'lang'", id="it raises"),
        pytest.param("leaves", r":leaves failed on the record: SystemExit: 0", id="it would end the build"),
        pytest.param("undecided", r":undecided failed on the record: ValueError", id="its answer is neither"),
    ],
)
def test_a_function_that_fails_is_named_with_the_record(module: str, function: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message + r"[\s\S]*where: x\.jsonl:7[\s\S]*mend the function"):
        run(FilterOptions(keep=f"{module}:{function}"), {"completion": "a"})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        pytest.param("text", r"the record is a string, not an object[\s\S]*x\.jsonl:7[\s\S]*completion", id="a string"),
        pytest.param([1], r"the record is a list, not an object", id="a list"),
        pytest.param(7, r"the record is a number, not an object", id="a number"),
        pytest.param(None, r"the record is null, not an object", id="null"),
        pytest.param({"completions": "a"}, r"no field 'completion'[\s\S]*did you mean 'completions'", id="a typo"),
        pytest.param({"body": "a"}, r"no field 'completion'[\s\S]*use one of: body \(--text-field\)", id="another"),
        pytest.param({}, r"no field 'completion'[\s\S]*delete the empty record", id="an empty record"),
    ],
)
def test_a_record_without_text_is_an_error_not_a_dropped_record(record: Any, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        run(FilterOptions(), record)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        pytest.param({"min_chars": 0}, r"min_chars is 0[\s\S]*use 1 or more", id="a minimum that says nothing"),
        pytest.param({"max_chars": -1}, r"max_chars is -1", id="a negative maximum"),
        pytest.param({"min_chars": 9, "max_chars": 8}, r"at least 9 and at most 8", id="nothing is left between"),
    ],
)
def test_lengths_that_cannot_be_are_refused(lengths: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FilterOptions(**lengths)


def test_the_fingerprint_follows_everything_that_decides(module: str, tmp_path: Path) -> None:
    changed = f"changed_{module}"
    (tmp_path / f"{changed}.py").write_text(USERS.replace("LEAST = 2", "LEAST = 3"))
    options = [
        FilterOptions(),
        FilterOptions(min_chars=1),
        FilterOptions(max_chars=1),
        FilterOptions(keep=f"{module}:good"),
        FilterOptions(keep=f"{module}:breaks"),
        FilterOptions(keep=f"{changed}:good"),
        FilterOptions(keep="builtins:bool"),
    ]
    assert len({one.fingerprint() for one in options}) == len(options)
    assert [one.fingerprint() for one in options] == [one.fingerprint() for one in options]


def test_the_fingerprint_changes_with_a_constant_beside_the_function(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FilterOptions(keep=f"{module}:long_enough")
    before = options.fingerprint()
    (tmp_path / f"{module}.py").write_text(USERS.replace("LEAST = 2", "LEAST = 3000"))
    monkeypatch.delitem(sys.modules, module)
    linecache.checkcache()
    assert options.fingerprint() != before
