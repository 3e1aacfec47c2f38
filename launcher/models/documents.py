"""Models in which the documents of a row do not see each other.

A row that holds several documents is computed as if each were alone: attention stays inside a document, and positions
begin anew with it. What a family needs for that is one of three things: a mask that its own code makes (from
transformers' `masking_utils`, which takes a function of two places and so serves sdpa, eager and flex attention alike),
the lengths of the documents (flash attention, which then computes nothing across), or a mask made here (DeBERTa).

B: rows   S: places of a row   T: places of a decoder's row   D: documents of all rows, runs of padding among them
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, and_masks, bidirectional_mask_function

from launcher.errors import ModelError
from launcher.models.configuration import first_position

MASK_MAKERS = (
    "create_causal_mask",
    "create_bidirectional_mask",
    "create_sliding_window_causal_mask",
    "create_bidirectional_sliding_window_mask",
)
FULL_LAYERS = frozenset(("full_attention", "sliding_attention", "chunked_attention"))
"""Kinds of layers that mix places by attention alone; recurrent ones carry a state from document to document."""
FIX = "use data.documents=joined, or another family"


def keep_documents_apart(model: PreTrainedModel) -> None:
    """Let a model take `segment_ids` (int64 [B, S]; of an encoder-decoder also `decoder_segment_ids`, [B, T]).

    Places with the same number in one row see each other and nobody else; runs of -1 are padding, whose places see only
    padding. Weights and their names stay as they are, and without the numbers nothing changes.

    Args:
        model: Any whose family makes its masks as the head of this module says.

    Raises:
        ModelError: The family mixes the places of a row by other means, or cannot be told positions.
    """
    _refuse(model)
    context = _Context(model, is_flash=model.config._attn_implementation.startswith("flash"))
    encoder = _encoder(model)
    if encoder is not None and hasattr(encoder, "get_attention_mask"):  # DeBERTa's layers take a 3-D mask
        encoder.register_forward_pre_hook(context.masked, with_kwargs=True)
    if encoder is not None and model.config.is_encoder_decoder:
        encoder.register_forward_pre_hook(context.encoder_begins)
        encoder.register_forward_hook(context.encoder_ends, always_call=True)
    for module in _position_tables(model):
        module.register_forward_pre_hook(context.flat_positions, with_kwargs=True)
        module.register_forward_hook(context.shaped_positions)
    model.register_forward_pre_hook(context.enter, with_kwargs=True)
    model.register_forward_hook(context.leave, always_call=True)


def position_ids(segments_BS: torch.Tensor) -> torch.Tensor:
    """Places counted from 0 in every run of one number, int64 [B, S]."""
    places_S = torch.arange(segments_BS.shape[1], device=segments_BS.device)
    begins_BS = torch.where(_begins(segments_BS), places_S, 0)
    return places_S - begins_BS.cummax(dim=1).values


def cumulative_lengths(segments_BS: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Where each run of one number begins in the flattened rows, and their end, int32 [D + 1]; and the longest run."""
    begins = _begins(segments_BS).flatten().nonzero().squeeze(1)
    ends = torch.cat([begins, begins.new_tensor([segments_BS.numel()])])
    return ends.to(torch.int32), int(ends.diff().max())


def _begins(segments_BS: torch.Tensor) -> torch.Tensor:
    begins_BS = torch.ones_like(segments_BS, dtype=torch.bool)
    begins_BS[:, 1:] = segments_BS[:, 1:] != segments_BS[:, :-1]
    return begins_BS


@dataclass
class _Context:
    """What the parts of one model are told during a forward call."""

    model: PreTrainedModel
    is_flash: bool
    segments_BS: torch.Tensor | None = None
    """Of the rows that a decoder reads, or the only ones."""
    encoder_segments_BS: torch.Tensor | None = None
    """Of an encoder-decoder's encoder."""
    in_encoder: bool = False
    """Whether masks asked for now are those of an encoder-decoder's encoder."""

    def enter(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Take the numbers out of the call and put in what the family knows."""
        segments_BS = kwargs.pop("segment_ids", None)
        decoder_BT = kwargs.pop("decoder_segment_ids", None)
        if segments_BS is None:
            return args, kwargs
        self.segments_BS = segments_BS if decoder_BT is None else decoder_BT
        self.encoder_segments_BS = None if decoder_BT is None else segments_BS
        kwargs.pop("attention_mask", None)  # padding is a run of its own
        if "position_ids" in inspect.signature(model.forward).parameters and decoder_BT is None:
            kwargs["position_ids"] = position_ids(segments_BS) + first_position(model.config)
        if self.is_flash:
            lengths, longest = cumulative_lengths(segments_BS)
            kwargs |= {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths}
            kwargs |= {"max_length_q": longest, "max_length_k": longest}
        else:
            name = model.config._attn_implementation
            # The library's way to change a mask for a while: this hides its own function, `leave` brings it back.
            ALL_MASK_ATTENTION_FUNCTIONS[name] = self._inside_documents(ALL_MASK_ATTENTION_FUNCTIONS[name])
        return args, kwargs

    def leave(self, model: Any, args: Any, output: Any) -> None:
        """Forget the call, also one that failed."""
        if self.segments_BS is not None:
            self.segments_BS = self.encoder_segments_BS = None
            if not self.is_flash:
                del ALL_MASK_ATTENTION_FUNCTIONS[model.config._attn_implementation]

    def encoder_begins(self, encoder: Any, args: Any) -> None:
        """From here on masks are the encoder's."""
        self.in_encoder = True

    def encoder_ends(self, encoder: Any, args: Any, output: Any) -> None:
        """From here on masks are the decoder's."""
        self.in_encoder = False

    def masked(self, encoder: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """DeBERTa's layers get a mask [B, S, S]."""
        if self.segments_BS is None:
            return args, kwargs
        hidden, _, *rest = args
        same_BSS = (self.segments_BS[:, :, None] == self.segments_BS[:, None, :]).to(torch.long)
        return (hidden, same_BSS, *rest), kwargs

    def flat_positions(self, table: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """BART's tables count positions by themselves, and take others only as one flat row."""
        segments_BS = self._segments_read_by(table)
        if segments_BS is not None:
            kwargs["position_ids"] = position_ids(segments_BS).flatten()
        return args, kwargs

    def shaped_positions(self, table: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        """The flat row back in shape."""
        segments_BS = self._segments_read_by(table)
        return output if segments_BS is None else output.view(*segments_BS.shape, -1)

    def _segments_read_by(self, table: Any) -> torch.Tensor | None:
        in_encoder = table is getattr(_encoder(self.model), "embed_positions", None)
        return self.encoder_segments_BS if in_encoder else self.segments_BS

    def _inside_documents(self, make_mask: Callable[..., Any]) -> Callable[..., Any]:
        """A maker of masks that leaves out what lies in other documents."""

        def make(*, mask_function: Callable[..., Any], q_length: int, kv_length: int, **settings: Any) -> Any:
            queries_BS = keys_BS = self.segments_BS
            if self.encoder_segments_BS is not None and mask_function is bidirectional_mask_function:
                keys_BS = self.encoder_segments_BS
                if self.in_encoder:
                    queries_BS = keys_BS
            if queries_BS is None or keys_BS is None:
                raise RuntimeError("a mask is made outside of a forward call")

            def same_document(batch: Any, head: Any, query: Any, key: Any) -> Any:
                return queries_BS[batch, query] == keys_BS[batch, key]

            settings |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
            both = and_masks(mask_function, same_document)
            return make_mask(mask_function=both, q_length=q_length, kv_length=kv_length, **settings)

        return make


def _encoder(model: PreTrainedModel) -> nn.Module | None:
    """The stack of layers that reads `input_ids`, where the family keeps it apart."""
    return getattr(model.base_model, "encoder", None)


def _position_tables(model: PreTrainedModel) -> list[nn.Module]:
    """Learned positions that count by themselves, and can be told."""
    tables = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "embed_positions"]
    return [table for table in tables if "position_ids" in inspect.signature(table.forward).parameters]


def _refuse(model: PreTrainedModel) -> None:
    config = model.config
    family = config.model_type
    layers = set(getattr(config, "layer_types", None) or ()) - FULL_LAYERS
    if layers:
        raise ModelError(
            f"layers of {family} carry a state from document to document ({', '.join(sorted(layers))})",
            "data.documents",
            FIX,
        )
    is_deberta = hasattr(_encoder(model), "get_attention_mask")
    if is_deberta and getattr(_encoder(model), "conv", None) is not None:
        raise ModelError(f"{family} mixes neighbouring places by a convolution", "model.config.conv_kernel_size", FIX)
    if is_deberta:
        return
    code = sys.modules[type(model).__module__]
    told = "position_ids" in inspect.signature(model.forward).parameters
    relative = hasattr(config, "relative_attention_num_buckets")
    if not any(hasattr(code, maker) for maker in MASK_MAKERS) or not (told or relative or _position_tables(model)):
        raise ModelError(f"{family} cannot be told where documents end", "data.documents", FIX)
    if config.is_encoder_decoder and config._attn_implementation.startswith("flash"):
        raise ModelError(
            "flash attention cannot keep documents apart between an encoder and a decoder",
            "model.attention",
            "use model.attention=sdpa, or data.documents=joined",
        )
