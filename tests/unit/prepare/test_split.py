"""What is held out follows from the text alone."""

from __future__ import annotations

from launcher.prepare.split import is_held_out


def test_about_the_share_asked_for_is_held_out() -> None:
    held = sum(is_held_out(str(number), 0.1) for number in range(5000))
    assert 430 < held < 570
    assert not is_held_out("anything", 0.0)


def test_a_text_and_its_utf8_fall_on_the_same_side() -> None:
    texts = [f"第{number}条" for number in range(200)]
    assert [is_held_out(text, 0.5) for text in texts] == [is_held_out(text.encode(), 0.5) for text in texts]
