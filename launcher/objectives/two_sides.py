"""What the objectives of encoder-decoders share.

Shapes: B samples, S tokens of the encoder's sequence, T of the decoder's, L raw tokens of a window.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from launcher.objectives.base import IGNORE_INDEX, Batch, Rows, all_rows, required
from launcher.shards.manifest import SpecialTokens


def end_token(special: SpecialTokens, objective: str) -> int:
    """The token that ends inputs and labels: the end of a text, or the separator where the tokenizer has none.

    Raises:
        ObjectiveError: It has neither.
    """
    return required(special.sep if special.eos is None else special.eos, "eos", objective)


def without_hidden(rows: Rows) -> Rows:
    """The rows without their hidden tokens, the rest moved up: a hole has no place where lengths follow from the text.

    Words are not moved: no objective of an encoder-decoder reads them.
    """
    if rows.hidden_BL is None:
        return rows
    gone_BL = rows.hidden_BL | (np.arange(rows.tokens_BL.shape[1]) >= rows.num_tokens_B[:, None])
    kept_first_BL = np.argsort(gone_BL, axis=1, kind="stable")
    segments_BL = rows.segments_BL
    return replace(
        all_rows(rows),
        tokens_BL=np.take_along_axis(rows.tokens_BL, kept_first_BL, axis=1),
        num_tokens_B=(~gone_BL).sum(axis=1),
        hidden_BL=None,
        segments_BL=None if segments_BL is None else np.take_along_axis(segments_BL, kept_first_BL, axis=1),
    )


def decoder_inputs(labels_BT: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """The labels one place later, behind the start token, as T5 starts its decoder; int64 [B, T]."""
    inputs_BT = np.full_like(labels_BT, start)
    inputs_BT[:, 1:] = np.where(labels_BT[:, :-1] == IGNORE_INDEX, start, labels_BT[:, :-1])
    return inputs_BT


def keep_apart(batch: Batch, segments_BS: NDArray[np.int64], segments_BT: NDArray[np.int64], start: int) -> Batch:
    """The batch with the numbers of its documents; each of them starts the decoder anew.

    Args:
        batch: What the model is given.
        segments_BS: Of the encoder's tokens, -1 on padding.
        segments_BT: Of the labels, -1 on padding.
        start: The token a decoder starts with.
    """
    decoder_BT = batch["decoder_input_ids"].copy()
    decoder_BT[:, 1:][segments_BT[:, 1:] != segments_BT[:, :-1]] = start
    return {
        **batch,
        "decoder_input_ids": decoder_BT,
        "segment_ids": segments_BS,
        "decoder_segment_ids": segments_BT,
    }
