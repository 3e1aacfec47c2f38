"""What an error says, and what a program that raised it ends with."""

from __future__ import annotations

import inspect
import pickle

import pytest

from launcher import errors
from launcher.checkpoint import ranks

ALL = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.LauncherError)] + [
    ranks.SaveError,
    ranks.SpaceError,
    ranks.LostRankError,
]


def test_an_error_says_what_where_and_the_fix() -> None:
    error = errors.BatchShapeError("it does not divide", "batch.global_batch", "use 240 or 288")
    assert str(error) == "BatchShapeError: it does not divide\n  where: batch.global_batch\n  fix:   use 240 or 288"
    assert str(errors.UserError("no more to say")) == "UserError: no more to say"


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_the_way_out_of_a_worker(kind: type[errors.LauncherError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", "where", "fix")))
    assert (error.what, error.where, error.fix) == ("what", "where", "fix")


@pytest.mark.parametrize("kind", ALL)
def test_exit_codes_tell_whose_fault_it_was(kind: type[errors.LauncherError]) -> None:
    expected = 2 if issubclass(kind, errors.UserError) else 75 if issubclass(kind, errors.RequeueError) else 1
    assert kind("x").exit_code == expected


def test_the_tree_in_the_docstring_names_every_class() -> None:
    for kind in vars(errors).values():
        if inspect.isclass(kind) and issubclass(kind, errors.LauncherError):
            assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("name", "known", "fix"),
    [
        ("num_step", ["num_steps", "seed"], "did you mean 'num_steps'?"),
        ("xyz", ["b", "a"], "use one of: a, b"),
    ],
)
def test_a_misspelled_name_is_offered_the_nearest(name: str, known: list[str], fix: str) -> None:
    assert errors.did_you_mean(name, known) == fix
