"""What a run still knows behind a checkpoint that it went back to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny

from launcher.config.loading import load_recipe
from launcher.engine.records import Health, Progress
from launcher.rewind import forget_other_losses
from launcher.samples.mixture import Phase


@pytest.mark.parametrize(
    ("change", "kept", "reason"),
    [
        (32, True, "it came in with the checkpoint's next step, which was judged by nothing before it"),
        (33, False, "amid what is passed over"),
        (63, False, "likewise, at its last position"),
        (64, True, "at the first that is trained on: it is still to come, and the step before it forgets"),
        (96, True, "later"),
    ],
)
def test_losses_are_forgotten_where_weights_changed_amid_what_is_passed_over(
    change: int, kept: bool, reason: str, tmp_path: Path
) -> None:
    """Of batches of 8: a checkpoint of step 4, and 32 positions passed over."""
    tree = tiny.recipe_tree("clm", tmp_path / "shards", tmp_path)
    recipe = load_recipe(str(tiny.write_recipe(tmp_path / "r.yaml", tree))).recipe
    mixture = SimpleNamespace(phases=[Phase(0, {"law": 1}), Phase(change, {"wiki": 1})])
    data = cast(Any, SimpleNamespace(train=SimpleNamespace(mixture=mixture)))
    progress = Progress(precision="fp32", step=4, passed_over=[[32, 32]], health=Health(recent_losses=[2.0]))
    forget_other_losses(progress, recipe, data, saved_at=32)
    assert (progress.health.recent_losses == [2.0]) == kept, reason
