"""The records of a run's data: which text, cut how, in which proportions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from launcher.config.record import FolderPath, Record


class CorpusConfig(Record):
    """One corpus of a mixture."""

    shards: FolderPath
    """Folder of prepared shards."""
    weight: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    """Its part of the samples, relative to the others'; 0 leaves it out until a change brings it in."""
    exclude: FolderPath | None = None
    """File that names documents to leave out, a line each: FILE:LINE, or the xxh3-128 of the text. Corpora may share
    one."""


class WeightChange(Record):
    """Other weights from a step on."""

    step: PositiveInt
    """Number of steps taken when the weights change."""
    weights: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]]
    """By corpus; one that is not named keeps its weight."""


class DataConfig(Record):
    """Which text, cut how."""

    shards: FolderPath | None = None
    """Folder of prepared shards (`pretrain prepare … --out FOLDER`); or give a `mixture`."""
    seq_len: Annotated[int, Field(ge=8)]
    """Tokens of one training sequence, special tokens included."""
    mixture: dict[str, CorpusConfig] = Field(default_factory=dict)
    """Several folders of shards by name, in place of `shards`: `{law: {shards: data/law/shards, weight: 0.7}, …}`."""
    changes: tuple[WeightChange, ...] = ()
    """Weights that change at a step. A run that goes on may add changes that lie ahead, and corpora they bring in."""
    packing: Literal["concat", "bestfit", "pad"] = "concat"
    """`concat` cuts the stream of documents into sequences; `bestfit` packs whole documents, and cuts only those that
    are longer than a sequence; `pad` puts one document into each, and drops what does not fit."""
    documents: Literal["joined", "apart"] = "joined"
    """Whether the documents of a sequence see each other: `apart` keeps attention and positions inside a document, and
    predicts nothing across its end. It costs a mask of sequence by sequence, except with flash and flex attention."""
    exclude: FolderPath | None = None
    """File that names documents to leave out, a line each: FILE:LINE, or the xxh3-128 of the text. No other document
    moves: their tokens become padding without attention or loss."""
    verify: Literal["touch", "open", "off"] = "touch"
    """When blocks of the shards are held against their checksums: when first touched, all at the start, never."""
    corpus: tuple[str, ...] = ()
    """Files the shards are made from. Only used to print the command that prepares them."""
    tokenizer: FolderPath | None = None
    """Tokenizer folder the shards were made with; where it exists, training checks that it is the same one."""

    @field_validator("corpus", "changes", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _is_one_or_several(self) -> DataConfig:
        if (self.shards is None) == (not self.mixture):
            raise ValueError("give either shards (one folder) or mixture (several)")
        if self.mixture and self.exclude is not None:
            raise ValueError("with a mixture, exclude stands beside the shards it is about: mixture.NAME.exclude")
        steps = [change.step for change in self.changes]
        if steps != sorted(set(steps)):
            raise ValueError(f"changes come one after another, not at steps {steps}")
        unknown = {name for change in self.changes for name in change.weights} - set(self.corpora)
        if unknown:
            raise ValueError(f"changes name {', '.join(sorted(unknown))}, the mixture has {', '.join(self.corpora)}")
        for weights in self.phases().values():
            if not any(weights.values()):
                raise ValueError("at every step some corpus needs a weight above 0")
        return self

    @property
    def corpora(self) -> dict[str, CorpusConfig]:
        """Every folder of shards by its name; of a single one, the folder's."""
        if self.shards is None:
            return self.mixture
        return {self.shards.name: CorpusConfig(shards=self.shards, exclude=self.exclude)}

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer beside the shards; that of any corpus, since all have the same."""
        return next(iter(self.corpora.values())).shards / "tokenizer"

    @property
    def keeps_documents_apart(self) -> bool:
        """Whether a row may hold several documents that do not see each other."""
        return self.documents == "apart" and self.packing != "pad"

    def phases(self) -> dict[int, dict[str, float]]:
        """The weights of all corpora from each step on at which they change, from step 0."""
        weights = {name: corpus.weight for name, corpus in self.corpora.items()}
        phases = {0: weights}
        for change in self.changes:
            weights = {**weights, **change.weights}
            phases[change.step] = weights
        return phases
