"""What can run but is likely not what was meant is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from launcher.config.doubts import recipe_doubts
from launcher.config.loading import check_recipe

LAST_ONLY = "only the last has a validation loss"


@pytest.mark.parametrize(
    ("changes", "told", "reason"),
    [
        ({"schedule__warmup_steps": 30}, "the learning rate never gets to", "the warm-up is longer than the run"),
        ({"eval__prompts": ["no blank"]}, "there is no [MASK] in 'no blank'", "nothing to fill"),
        ({"checkpoint__keep_best": 1, "checkpoint__every_steps": 5}, LAST_ONLY, "no validation on the way"),
        (
            {"checkpoint__keep_best": 1, "checkpoint__every_steps": 5, "eval__every_steps": 7},
            LAST_ONLY,
            "they meet first at step 35 of 20",
        ),
        ({"checkpoint__keep_best": 1, "checkpoint__every_steps": 10, "eval__every_steps": 5}, "", "each has one"),
        ({"checkpoint__keep_best": 1}, "", "there is only the last"),
    ],
)
def test_a_doubt_is_told(changes: dict[str, object], told: str, reason: str) -> None:
    doubts = "; ".join(recipe_doubts(check_recipe(tiny.recipe_tree("mlm", Path("s"), Path("r"), **changes), "test")))
    assert (told in doubts) if told else not doubts, reason
