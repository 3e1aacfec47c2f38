from __future__ import annotations

import pytest

from launcher.checkpoint import folder


@pytest.fixture(autouse=True)
def no_wait_for_a_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SECOND_LOOK_AFTER_S", 0.0)
