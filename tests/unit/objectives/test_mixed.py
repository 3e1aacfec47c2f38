"""Mixtures of objectives: shares, shapes, and what each part would have made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_rows import RawRows

from launcher.config.objectives import (
    CausalPart,
    MaskedPart,
    MixedObjective,
    ModeTokens,
    PrefixObjective,
    PrefixPart,
    SpanObjective,
    SpanPart,
    UL2Objective,
)
from launcher.errors import ObjectiveError
from launcher.objectives.base import IGNORE_INDEX, Objective
from launcher.objectives.build import Builder
from launcher.objectives.clm import CausalLM
from launcher.objectives.mixed import ObjectiveMixture
from launcher.objectives.mlm import MaskedLM
from launcher.objectives.prefix import CausalPrefixLM, PrefixLM
from launcher.objectives.span import SpanCorruption
from launcher.shards.manifest import SpecialTokens, TokenizerInfo

Rows = Callable[[int, int], NDArray[np.int32]]
MODES = (7, 8, 9)
UL2_DENOISERS = [(3, 0.15), (8, 0.15), None, (3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)]
UL2_MODES = [7, 7, 8, 9, 9, 9, 9]


def builder(special: SpecialTokens, seq_len: int = 512) -> Builder:
    tokenizer = TokenizerInfo(sha256="0" * 64, vocab_size=1000, name="none", special=special)
    return Builder(seq_len=seq_len, tokenizer=tokenizer, seed=3, tells_words={"law": True})


def ul2(special: SpecialTokens, seq_len: int = 512, mode_tokens: ModeTokens = MODES) -> ObjectiveMixture:
    made = builder(special, seq_len).build(UL2Objective(kind="ul2", mode_tokens=mode_tokens))
    assert isinstance(made, ObjectiveMixture)
    return made


def full(tokens: NDArray[np.int32], segments: NDArray[np.int32] | None = None) -> RawRows:
    return RawRows(tokens, np.full(len(tokens), tokens.shape[1]), np.arange(len(tokens)), segments_BL=segments)


def test_samples_fall_to_the_parts_by_weight_and_by_position_alone(special: SpecialTokens) -> None:
    parts: tuple[Objective, ...] = (CausalLM(16, special), CausalPrefixLM(16, 3, special), CausalLM(16, special))
    mixed = ObjectiveMixture(parts, (1.0, 2.5, 0.5), 3)
    drawn = mixed.parts_at(np.arange(40_000))
    shares = np.bincount(drawn, minlength=3) / 40_000
    assert shares.tolist() == pytest.approx([0.25, 0.625, 0.125], abs=0.012)
    assert np.array_equal(mixed.parts_at(np.arange(20_000, 20_010)), drawn[20_000:20_010])
    assert not np.array_equal(ObjectiveMixture(parts, (1.0, 2.5, 0.5), 4).parts_at(np.arange(40_000)), drawn)
    # Neighbours are independent: no part comes in turns.
    assert abs(np.corrcoef(drawn[1:] == 1, drawn[:-1] == 1)[0, 1]) < 5 / np.sqrt(40_000)


def test_each_sample_is_what_its_part_makes_of_it(special: SpecialTokens, text_rows: Rows) -> None:
    mixed = ul2(special, 128)
    rows = full(text_rows(60, mixed.window_length))
    batch = mixed.batch(rows)
    assert set(batch["part_ids"].tolist()) == set(range(7))
    for number, part in enumerate(mixed.parts):
        alone = part.batch(rows)
        chosen = batch["part_ids"] == number
        for name, array in alone.items():
            width = array.shape[1]
            assert np.array_equal(batch[name][chosen, :width], array[chosen])
            fill = {"labels": IGNORE_INDEX, "attention_mask": 0}.get(name, special.pad)
            assert (batch[name][chosen, width:] == fill).all()


@given(order=st.permutations(range(12)), cuts=st.sets(st.integers(1, 11)), apart=st.booleans())
def test_a_sample_is_the_same_in_any_row_of_any_batch(
    special: SpecialTokens, text_rows: Rows, order: list[int], cuts: set[int], apart: bool
) -> None:
    mixed = ul2(special, 64)
    length = mixed.window_length
    tokens, num_tokens = text_rows(12, length), np.array([length] * 10 + [9, 1])
    positions = np.arange(500, 512)
    segments = np.where(np.arange(length) < num_tokens[:, None], np.arange(length) // 20, -1).astype(np.int32)
    whole = mixed.batch(RawRows(tokens, num_tokens, positions, segments_BL=segments if apart else None))
    for chosen in np.split(np.array(order), sorted(cuts)):
        of_part = segments[chosen] if apart else None
        part = mixed.batch(RawRows(tokens[chosen], num_tokens[chosen], positions[chosen], segments_BL=of_part))
        assert part.keys() == whole.keys()
        for name, array in whole.items():
            assert np.array_equal(part[name], array[chosen])


def test_ul2_has_the_seven_denoisers_of_tay_et_al(special: SpecialTokens, text_rows: Rows) -> None:
    mixed = ul2(special)
    assert mixed.weights == (1.0,) * 7
    assert mixed.window_length == mixed.window_stride == 511  # a mode token, and any prefix with its end
    rows = full(text_rows(70, 511))
    for part, denoiser, mode in zip(mixed.parts, UL2_DENOISERS, UL2_MODES, strict=True):
        batch = part.batch(rows)
        assert (batch["input_ids"][:, 0] == mode).all()
        if denoiser is None:
            written = (batch["labels"] != IGNORE_INDEX).sum(axis=1) - 1  # uniform, a quarter on average
            assert set(written.tolist()) <= set(range(1, 256))
            assert written.mean() / 511 == pytest.approx(0.25, abs=5 * 0.5 / np.sqrt(12 * 70))
            continue
        mean_span, density = denoiser
        is_sentinel = np.isin(batch["labels"], special.sentinels)
        cut_out = (batch["labels"] != IGNORE_INDEX).sum() - is_sentinel.sum() - 70
        assert cut_out / rows.tokens_BL.size == pytest.approx(density, abs=0.5 / 511)
        assert cut_out / is_sentinel.sum() == pytest.approx(
            mean_span, rel=0.25 if mean_span == 64 else 0.04
        )  # whole spans
    batch = mixed.batch(rows)
    assert batch["input_ids"].shape == (70, 512)
    assert batch["labels"].shape == (70, 342)  # half of the tokens in spans of three, and the end


def test_nothing_is_lost_under_ul2(special: SpecialTokens, text_rows: Rows) -> None:
    mixed = ul2(special, 96)
    rows = full(text_rows(80, mixed.window_length))
    batch = mixed.batch(rows)
    for row in range(80):
        inputs = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        labels = batch["labels"][row][batch["labels"][row] != IGNORE_INDEX].tolist()
        assert inputs.pop(0) in MODES
        assert inputs.pop() == labels.pop() == special.eos
        spans: dict[int, list[int]] = {}
        rest: list[int] = []
        current = rest
        for token in labels:
            if token in special.sentinels:
                current = spans[token] = []
            else:
                current.append(token)
        again = [token for place in inputs for token in spans.get(place, [place])] + rest
        assert again == rows.tokens_BL[row].tolist()


def test_parts_share_the_window_of_the_one_that_fits_least(special: SpecialTokens) -> None:
    config = MixedObjective(
        kind="mixture", parts=(SpanPart(kind="span", weight=3.0), SpanPart(kind="span", density=0.5))
    )
    mixed = builder(special).build(config)
    assert isinstance(mixed, ObjectiveMixture)
    # 568 fit at density 0.15, more at 0.5: half of the text leaves a sixth of it in sentinels.
    assert mixed.window_length == 568
    assert SpanCorruption(512, 3, special, window=400).window_length == 400


def test_decoders_and_encoders_mix_too(special: SpecialTokens, text_rows: Rows) -> None:
    causal = MixedObjective(
        kind="mixture", parts=(CausalPart(kind="clm"), PrefixPart(kind="prefix", head="causal", weight=2.0))
    )
    made = builder(special, 32).build(causal)
    assert (made.window_length, made.window_stride, made.needs_words) == (33, 32, False)
    batch = made.batch(full(text_rows(9, 33)))
    assert batch["labels"].shape == (9, 32)
    masked = MixedObjective(kind="mixture", parts=(MaskedPart(kind="mlm"), MaskedPart(kind="mlm", unit="word")))
    words = builder(special, 32).build(masked)
    assert (words.window_length, words.needs_words) == (30, True)
    assert masked.predicted_share == pytest.approx(0.15)


def test_mode_tokens_come_from_the_tokenizer_or_the_recipe_or_are_left_out(special: SpecialTokens) -> None:
    own = replace(special, modes=MODES)
    assert [getattr(part, "mode", None) for part in ul2(own, mode_tokens="tokenizer").parts] == UL2_MODES
    without = ul2(special, mode_tokens="none")
    assert {getattr(part, "mode", 0) for part in without.parts} == {None}
    assert without.window_length == 512
    single = builder(own).build(SpanObjective(kind="span", mode="X"))
    assert isinstance(single, SpanCorruption)
    assert (single.mode, single.window_length) == (9, 567)
    assert isinstance(builder(own).build(PrefixObjective(kind="prefix", mode="S")), PrefixLM)


@pytest.mark.parametrize(
    ("mode_tokens", "message"),
    [
        ("tokenizer", r"no tokens for them[\s\S]*mode_tokens=\[902,901,900\], its last sentinels"),
        ((7, 7, 8), r"\[7, 7, 8\] are not three tokens"),
        ((7, 8, 5000), r"are not three tokens of a tokenizer with 1000"),
        ((999, 8, 9), r"the token 999 cannot name a denoiser[\s\S]*where: objective.mode_tokens"),
    ],
    ids=["none there", "twice the same", "no token", "a sentinel in use"],
)
def test_mode_tokens_that_cannot_be_are_refused(special: SpecialTokens, mode_tokens: ModeTokens, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        ul2(special, mode_tokens=mode_tokens)


def test_mixtures_that_cannot_be_are_refused(special: SpecialTokens) -> None:
    clm, mlm = CausalLM(16, special), MaskedLM(16, 3, special, 1000)
    with pytest.raises(ObjectiveError, match=r"one kind of window, not 14 every 14, 17 every 16 tokens"):
        ObjectiveMixture((clm, mlm), (1.0, 1.0), 3)
    for parts, weights in (((), ()), ((clm,), (1.0, 1.0)), ((clm, clm), (1.0, 0.0))):
        with pytest.raises(ObjectiveError, match="cannot be mixed with weights"):
            ObjectiveMixture(parts, weights, 3)
    with pytest.raises(ObjectiveError, match="needs 85 sentinel tokens"):
        ul2(replace(special, sentinels=special.sentinels[:50]))
