"""What the objectives of published recipes make of a position never changes: digests written down once."""

from __future__ import annotations

import numpy as np
import pytest
from raw_rows import RawRows

from launcher.objectives.base import Objective
from launcher.objectives.clm import CausalLM
from launcher.objectives.mlm import MaskedLM
from launcher.objectives.prefix import CausalPrefixLM, PrefixLM
from launcher.objectives.span import SpanCorruption
from launcher.samples.digest import combine, digest
from launcher.shards.manifest import SpecialTokens


def rows_for(objective: Objective) -> RawRows:
    """Forty rows with ends of documents, two of them short, one with hidden tokens."""
    rng, length = np.random.default_rng(5), objective.window_length
    tokens = rng.integers(10, 900, (40, length)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.02] = 3
    num_tokens = np.full(40, length)
    num_tokens[7], num_tokens[11] = 9, length // 2
    continues = rng.random(tokens.shape) < 0.4
    continues[:, 0] = False
    continues[tokens == 3] = False
    hidden = np.zeros(tokens.shape, dtype=np.bool_)
    hidden[3, 4:9] = True
    return RawRows(tokens, num_tokens, np.arange(1000, 1040), hidden_BL=hidden, continues_BL=continues)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token", "5c3c11bbd78ca7d6"),
        ("word", "b070f526fa47acaa"),
        ("ngram", "e5e95b6037bf44e9"),
        ("span of words", "3c947c9ce273d80e"),
        ("clm", "cf52b01b4c01999f"),
        ("span", "e46161bc7e6ede59"),
        ("prefix", "7b0fbc93a7d9c1ee"),
        ("causal prefix", "eff14d5d29b3aef2"),
    ],
)
def test_digests_are_those_written_down(special: SpecialTokens, name: str, expected: str) -> None:
    objectives: dict[str, Objective] = {
        "token": MaskedLM(128, 7, special, 1000),
        "word": MaskedLM(128, 7, special, 1000, unit="word"),
        "ngram": MaskedLM(128, 7, special, 1000, unit="ngram"),
        "span of words": MaskedLM(128, 7, special, 1000, unit="span", has_words=True),
        "clm": CausalLM(128, special),
        "span": SpanCorruption(128, 7, special),
        "prefix": PrefixLM(128, 7, special),
        "causal prefix": CausalPrefixLM(128, 7, special),
    }
    rows = rows_for(objectives[name])
    assert f"{combine(digest(rows.positions_B, objectives[name].batch(rows))):016x}" == expected
