"""Documents of a row that do not see each other: the row's losses are those of its documents one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from families import BERT_LIKE, FAMILIES, NO_DROPOUT, NO_FLEX, NUMBERS, ONLY_EAGER

from launcher.config.model import ModelConfig
from launcher.config.objectives import Head
from launcher.errors import ModelError
from launcher.models.build import build_model
from launcher.models.configuration import build_config
from launcher.models.documents import cumulative_lengths, keep_documents_apart, position_ids

VOCAB, FIRST_ID = 96, 15
LENGTHS = ((7, 1, 5, 3), (9, 7), (4, 4, 4))  # the rows of 16 places, padding behind


def build(head: Head, family: str, config: dict[str, Any], attention: str) -> Any:
    if attention == "flex_attention" and family in BERT_LIKE:
        config = {**config, **NO_DROPOUT}
    record = ModelConfig.model_validate({"family": family, "attention": attention, **NUMBERS, "config": config})
    made = build_config(record, head, tiny.tokenizer_info(), 16)
    model = build_model(made, record, head, seed=3).eval()
    keep_documents_apart(model)
    return model


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(FIRST_ID, VOCAB, (len(LENGTHS), 16), generator=generator)
    segments_BS = torch.full((len(LENGTHS), 16), -1)
    for row, lengths in enumerate(LENGTHS):
        segments_BS[row, : sum(lengths)] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ids_BS, segments_BS


@pytest.fixture(autouse=True)
def _nothing_is_compiled() -> Iterator[None]:
    """Flex attention is compiled, for half a minute a shape; as plain PyTorch it computes the same."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize(
    ("head", "family", "config", "attention"),
    [
        pytest.param(head, family, config, attention, id=f"{family}-{attention}")
        for head, family, config in FAMILIES
        for attention, without in (("sdpa", ONLY_EAGER), ("eager", ()), ("flex_attention", NO_FLEX))
        if family not in without
    ],
)
def test_a_row_of_documents_is_its_documents_one_by_one(
    head: Head, family: str, config: dict[str, Any], attention: str
) -> None:
    model = build(head, family, config, attention)
    ids_BS, segments_BS = rows()
    writes = head == "seq2seq"  # its decoder's documents have other lengths than the encoder's
    decoder_BT, decoder_ids_BT = segments_BS[:, 1:-1], ids_BS[:, 1:-1].flip(0)
    both = {"decoder_input_ids": decoder_ids_BT, "decoder_segment_ids": decoder_BT} if writes else {}
    with torch.no_grad():
        packed_BSV = model(input_ids=ids_BS, segment_ids=segments_BS, **both).logits
        for row, lengths in enumerate(LENGTHS):
            for number in range(len(lengths)):
                alone = {"input_ids": ids_BS[row, segments_BS[row] == number][None]}
                here = (segments_BS if not writes else decoder_BT)[row] == number
                if writes:
                    alone["decoder_input_ids"] = decoder_ids_BT[row, here][None]
                torch.testing.assert_close(packed_BSV[row, here], model(**alone).logits[0], rtol=1e-5, atol=1e-5)


def test_without_numbers_nothing_changes_and_a_failed_call_leaves_nothing_behind() -> None:
    model = build("causal", "llama", {}, "sdpa")
    ids_BS, segments_BS = rows()
    with torch.no_grad():
        before = model(input_ids=ids_BS).logits
        model(input_ids=ids_BS, segment_ids=segments_BS)
        with pytest.raises(IndexError):
            model(input_ids=ids_BS + 10**6, segment_ids=segments_BS)
        assert torch.equal(model(input_ids=ids_BS).logits, before)


def test_gradients_do_not_cross_a_document_with_activation_checkpointing() -> None:
    model = build("causal", "llama", {}, "sdpa").train()
    model.gradient_checkpointing_enable()
    ids_BS, segments_BS = rows()
    embedded = model.get_input_embeddings()(ids_BS).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, segment_ids=segments_BS).logits
    logits[0, segments_BS[0] == 2].sum().backward()
    assert embedded.grad is not None
    touched = embedded.grad[0].abs().sum(-1) > 0
    assert touched.tolist() == (segments_BS[0] == 2).tolist()


def test_positions_and_lengths_begin_anew_with_every_run() -> None:
    segments_BS = torch.tensor([[0, 0, 0, 1, 2, 2, -1, -1], [0, 0, -1, -1, 1, 1, 1, 1]])
    assert position_ids(segments_BS).tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1, 2, 3]]
    lengths, longest = cumulative_lengths(segments_BS)
    assert (lengths.tolist(), lengths.dtype, longest) == ([0, 3, 4, 6, 8, 10, 12, 16], torch.int32, 4)


@pytest.mark.parametrize(
    ("head", "family", "config", "attention", "message"),
    [
        ("causal", "mamba", {}, "eager", "layers of mamba carry a state from document to document"),
        ("causal", "bloom", {}, "eager", "bloom cannot be told where documents end"),
        ("masked", "deberta-v2", {"conv_kernel_size": 3}, "eager", "mixes neighbouring places by a convolution"),
    ],
)
def test_families_that_mix_places_in_other_ways_are_refused(
    head: Head, family: str, config: dict[str, Any], attention: str, message: str
) -> None:
    numbers = {"hidden_size": 48, "num_hidden_layers": 1}
    record = ModelConfig.model_validate({"family": family, "attention": attention, **numbers, "config": config})
    made = build_config(record, head, tiny.tokenizer_info(), 16)
    with pytest.raises(ModelError, match=message):
        keep_documents_apart(build_model(made, record, head, seed=3))
