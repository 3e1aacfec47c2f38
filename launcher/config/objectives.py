"""What a run may be told to predict; the meanings of fields are written for users, as in `recipe.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from launcher.config.record import Record, Share

Head = Literal["masked", "next_sentence", "sentence_order", "causal", "seq2seq"]
"""What a model must be able to do for an objective: predict a token from both sides, tell besides whether a second text
follows a first or in which order two stand, predict a token from those before it, or write a text after reading
another."""
PAIR_HEADS: dict[str, Head] = {"none": "masked", "nsp": "next_sentence", "sop": "sentence_order"}


Mode = Literal["R", "S", "X"]
"""UL2's kinds of denoiser: regular, sequential, extreme."""
ModeTokens = Literal["tokenizer", "none"] | tuple[int, int, int]


class Objective(Record):
    """What every objective tells of itself."""

    @property
    def predicted_share(self) -> float:
        """Share of the tokens on which the output layer computes."""
        return 1.0

    @property
    def has_pairs(self) -> bool:
        """Whether samples are pairs of texts, of which a second head has something to tell."""
        return False


class MaskedObjective(Objective):
    """Masked language modelling (Devlin et al. 2018)."""

    kind: Literal["mlm"]
    """`mlm`: hide tokens and predict them from both sides."""
    mask_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of tokens to predict: 0.15 as BERT, 0.3 as ModernBERT."""
    unit: Literal["token", "word", "ngram", "span"] = "token"
    """What is masked at once: `token`; `word`; `ngram`, up to `max_ngram` words (ALBERT); `span`, 3.8 words on average
    (SpanBERT), tokens in a corpus that tells no words; `word` and `ngram` need words (`pretrain prepare --words`)."""
    max_ngram: Annotated[int, Field(ge=1, le=64)] = 3
    """`unit: ngram` only: longest n-gram, in words; one of n words is 1/n times as frequent as a single word."""
    sentence_pairs: Literal["none", "nsp", "sop"] = "none"
    """A second head beside the masked tokens: `nsp` tells whether the second half of a sample follows the first or
    is from another document (BERT), `sop` whether its halves stand in their order (ALBERT). A sample is then whole
    sentences of one document; needs sentences (`pretrain prepare --sentences`)."""

    @property
    def head(self) -> Head:
        """What the model must be able to do."""
        return PAIR_HEADS[self.sentence_pairs]

    @property
    def predicted_share(self) -> float:
        """Share of the tokens on which the output layer computes."""
        return self.mask_share

    @property
    def has_pairs(self) -> bool:
        """Whether samples are pairs of texts, of which a second head has something to tell."""
        return self.sentence_pairs != "none"


class CausalObjective(Objective):
    """Next-token prediction."""

    kind: Literal["clm"]
    """`clm`: predict each token from those before it."""
    fim_share: Share = 0.0
    """Share of the texts whose middle is put last, to be filled in (Bavarian et al. 2022); needs a tokenizer with
    <fim_prefix>, <fim_middle> and <fim_suffix>. A full sequence loses three tokens for each."""
    fim_spm_share: Share = 0.5
    """Share of those that begin with their end (SPM); the others begin with their beginning (PSM)."""

    @property
    def head(self) -> Head:
        """What the model must be able to do."""
        return "causal"


class SpanObjective(Objective):
    """T5's span corruption (Raffel et al. 2020)."""

    kind: Literal["span"]
    """`span`: replace spans by sentinels and write the spans."""
    density: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of tokens that are cut out."""
    mean_span: Annotated[float, Field(ge=1.0)] = 3.0
    """Mean length of a span, in tokens."""
    mode: Mode | None = None
    """Begin what the encoder reads with UL2's token for this kind of denoiser."""

    @property
    def head(self) -> Head:
        """What the model must be able to do."""
        return "seq2seq"


class PrefixObjective(Objective):
    """Prefix language modelling (Raffel et al. 2020, section 3.3.1)."""

    kind: Literal["prefix"]
    """`prefix`: read the beginning of a text, cut anywhere, and write the rest."""
    head: Literal["seq2seq", "causal"] = "seq2seq"
    """`seq2seq`: the encoder reads the beginning and the decoder writes the rest; `causal`: a decoder reads both from
    left to right, with loss behind the cut only."""
    written_share: Annotated[float, Field(gt=0.0, le=0.5)] = 0.5
    """Mean share of a text that is to be written, which is any share from none to twice as much: 0.5 cuts anywhere, as
    T5; 0.25 in the last half, as UL2."""
    mode: Mode | None = None
    """Begin what the encoder reads with UL2's token for this kind of denoiser."""

    @model_validator(mode="after")
    def _has_an_encoder_for_its_mode(self) -> PrefixObjective:
        if self.mode is not None and self.head == "causal":
            raise ValueError("a mode token begins what an encoder reads: use head: seq2seq, or no mode")
        return self


class Part(Record):
    """One objective of a mixture."""

    weight: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """Its part of the samples, relative to the others'."""


class MaskedPart(MaskedObjective, Part):
    """Masked language modelling as a part."""

    @field_validator("sentence_pairs")
    @classmethod
    def _is_of_single_texts(cls, value: str) -> str:
        if value != "none":
            raise ValueError("pairs are samples of another shape than the other parts read: use them in kind: mlm")
        return value


class CausalPart(CausalObjective, Part):
    """Next-token prediction as a part."""


class SpanPart(SpanObjective, Part):
    """Span corruption as a part."""


class PrefixPart(PrefixObjective, Part):
    """Prefix language modelling as a part."""


PartConfig = Annotated[MaskedPart | CausalPart | SpanPart | PrefixPart, Field(discriminator="kind")]


class MixedObjective(Objective):
    """Several objectives; which of them makes a sample is drawn by weight."""

    kind: Literal["mixture"]
    """`mixture`: several objectives, drawn for each sample by weight."""
    parts: Annotated[tuple[PartConfig, ...], Field(min_length=1)]
    """The objectives, each with a weight: `[{weight: 0.7, kind: span}, {weight: 0.3, kind: prefix}]`; all for one kind
    of model."""
    mode_tokens: ModeTokens = "tokenizer"
    """Tokens of the modes R, S and X: the tokenizer's own, three ids, or `none` to leave them out."""

    @field_validator("parts", "mode_tokens", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _is_for_one_kind_of_model(self) -> MixedObjective:
        heads = {part.head for part in self.parts}
        if len(heads) > 1:
            told = ", ".join(f"{part.kind} ({part.head})" for part in self.parts)
            raise ValueError(f"the parts of a mixture train one kind of model, these need several: {told}")
        return self

    @property
    def head(self) -> Head:
        """What the model must be able to do."""
        return self.parts[0].head

    @property
    def predicted_share(self) -> float:
        """Share of the tokens on which the output layer computes."""
        total = sum(part.weight for part in self.parts)
        return sum(part.weight * part.predicted_share for part in self.parts) / total


class UL2Objective(Objective):
    """UL2's mixture of denoisers (Tay et al. 2022, table 1; arXiv:2205.05131)."""

    kind: Literal["ul2"]
    """`ul2`: short, long and dense spans and prefixes, mixed: UL2's seven denoisers."""
    mode_tokens: ModeTokens = "tokenizer"
    """Tokens of the modes R, S and X: the tokenizer's own, three ids, or `none` to leave them out."""

    @field_validator("mode_tokens", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @property
    def parts(self) -> tuple[SpanPart | PrefixPart, ...]:
        """The denoisers, in about equal parts (section 3.1.2). Spans are cut as T5 cuts them, as the paper's own code
        does (its appendix), though section 3.1.2 has their lengths drawn from a normal distribution.
        """
        return (
            SpanPart(kind="span", mean_span=3.0, density=0.15, mode="R"),
            SpanPart(kind="span", mean_span=8.0, density=0.15, mode="R"),
            PrefixPart(kind="prefix", mode="S", written_share=0.25),
            SpanPart(kind="span", mean_span=3.0, density=0.5, mode="X"),
            SpanPart(kind="span", mean_span=8.0, density=0.5, mode="X"),
            SpanPart(kind="span", mean_span=64.0, density=0.15, mode="X"),
            SpanPart(kind="span", mean_span=64.0, density=0.5, mode="X"),
        )

    @property
    def head(self) -> Head:
        """What the model must be able to do."""
        return "seq2seq"


ObjectiveConfig = Annotated[
    MaskedObjective | CausalObjective | SpanObjective | PrefixObjective | MixedObjective | UL2Objective,
    Field(discriminator="kind"),
]


def in_words(config: ObjectiveConfig | PartConfig) -> str:
    """An objective's kind and what is not as it is by default."""
    fields = config.model_dump(mode="json", exclude_defaults=True, exclude={"kind", "weight"})
    return ", ".join([config.kind, *(f"{name} {value}" for name, value in fields.items())])


def part_names(config: ObjectiveConfig) -> tuple[str, ...]:
    """Of each part of a mixture what it is called where it is measured; parts that differ in weight alone share a name.

    Empty where the objective is no mixture.
    """
    return tuple(in_words(part) for part in config.parts) if isinstance(config, MixedObjective | UL2Objective) else ()
