"""From positions of a run to the tokens that stand there.

Shapes: B samples, L tokens of a row, S corpora.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import xxhash
from numpy.typing import NDArray

from launcher.samples import mixture as mixing
from launcher.samples.cursor import Cursor
from launcher.samples.exclude import Excluded
from launcher.samples.grouping import grouped
from launcher.samples.mixture import Mixture, Phase
from launcher.samples.order import SampleOrder
from launcher.samples.pieces import Pieces, join
from launcher.samples.sentence_pairs import UNTOLD, SentencePairs
from launcher.samples.shapes import Samples


def _no_documents() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class SampleBatch:
    """Raw samples and where each stands in the run."""

    tokens_BL: NDArray[np.int32]
    """Token ids, int32 [B, L]; fill behind the real ones and in place of the hidden ones."""
    num_tokens_B: NDArray[np.int64]
    """Real tokens of each row, hidden ones among them."""
    positions_B: NDArray[np.int64]
    """Position in the run, counted on through the epochs."""
    epochs_B: NDArray[np.int64]
    """Epoch of the row's corpus, from 0."""
    sample_ids_B: NDArray[np.int64]
    """Number of the sample in its corpus."""
    corpora_B: NDArray[np.int64]
    """Index of the corpus in the loader."""
    hidden_BL: NDArray[np.bool_] | None
    """Tokens of excluded documents, bool [B, L]; None when no row has one."""
    continues_BL: NDArray[np.bool_] | None
    """Tokens that continue the word of the token before them, bool [B, L]; None when the loader does not read them."""
    segments_BL: NDArray[np.int32] | None
    """Number of the document's piece inside its row, -1 on padding, int32 [B, L]; None where documents of a row may see
    each other."""
    pieces: Callable[[], Pieces]
    """Where documents begin and end in the rows; computed when called."""
    pair_cuts_B: NDArray[np.int64] | None = None
    """Tokens of the first part of each row, int64 [B]; None where rows are no pairs."""
    pair_labels_B: NDArray[np.int64] | None = None
    """AS_WRITTEN, CHANGED or UNTOLD (`launcher.samples.sentence_pairs`), int64 [B]; None where rows are no pairs."""


@dataclass(frozen=True)
class Corpus:
    """The samples of a split in an order of their own.

    Raises:
        ValueError: The order was made for another number of samples.
        RecipeError: An excluded document does not exist.
    """

    name: str
    """As the mixture's weights and the cursor call it."""
    samples: Samples
    """The samples of the split."""
    order: SampleOrder
    """Which of them stands at which of the corpus's own positions."""
    exclude: NDArray[np.int64] = field(default_factory=_no_documents, repr=False, compare=False)
    """Documents of the split whose tokens are hidden."""

    def __post_init__(self) -> None:
        if self.order.num_samples != self.samples.num_samples:
            raise ValueError(f"an order of {self.order.num_samples} for {self.samples.num_samples} samples")
        _ = self.excluded

    @cached_property
    def excluded(self) -> Excluded:
        """The documents whose tokens are hidden."""
        return Excluded(self.samples, self.exclude)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of all that decides which tokens stand at a position of its own; not what is excluded."""
        samples = self.samples
        text = f"{samples.stream.fingerprint} {samples.fingerprint} {self.order.fingerprint}"
        return xxhash.xxh3_64_hexdigest(text.encode())


class Loader:
    """The samples of one corpus, or of several mixed, in the order of a run.

    It keeps nothing but what it computed last: a batch is a pure function of the positions asked for, so what a run
    must remember is one integer (`launcher.samples.cursor`).

    Args:
        corpora: All with rows of one length.
        mixture: Names the same corpora in the same order; may be left out where there is one.
        with_words: Whether batches carry `continues_BL`; where a corpus tells no words, each token is one.
        with_segments: Whether batches carry `segments_BL`.

    Raises:
        ValueError: The corpora differ in length, or from those of the mixture.
    """

    def __init__(
        self,
        corpora: tuple[Corpus, ...],
        mixture: Mixture | None = None,
        *,
        with_words: bool = False,
        with_segments: bool = False,
    ) -> None:
        self.corpora = corpora
        self.mixture = Mixture.alone(corpora[0].name) if mixture is None else mixture
        self.with_words, self.with_segments = with_words, with_segments
        names = tuple(corpus.name for corpus in corpora)
        if names != self.mixture.names:
            raise ValueError(f"a mixture of {self.mixture.names} for {names}")
        lengths = {corpus.samples.length for corpus in corpora}
        if len(lengths) > 1:
            raise ValueError(f"rows of {sorted(lengths)} tokens in one batch")
        self.length = lengths.pop()
        self.with_pairs = all(isinstance(corpus.samples, SentencePairs) for corpus in corpora)

    @property
    def num_samples(self) -> int:
        """Samples of all corpora together, each counted once."""
        return sum(corpus.samples.num_samples for corpus in self.corpora)

    def fetch(self, positions_B: NDArray[np.int64], out_BL: NDArray[np.int32] | None = None) -> SampleBatch:
        """The samples at these positions, one row each in the order given.

        Args:
            positions_B: int64 [B], from 0 on.
            out_BL: Where the tokens go, int32 [B, L]; a new array where it is left out.

        Raises:
            IndexError: A position is negative.
            ShardError: A block of the shards that is touched for the first time is damaged.
        """
        shape = (len(positions_B), self.length)
        tokens_BL = np.empty(shape, dtype=np.int32) if out_BL is None else out_BL
        continues_BL = np.empty(shape, dtype=np.bool_) if self.with_words else None
        hidden_BL: NDArray[np.bool_] | None = None
        num_tokens_B, epochs_B, sample_ids_B = np.empty((3, len(positions_B)), dtype=np.int64)
        cuts_B, labels_B = np.empty((2, len(positions_B)), dtype=np.int64) if self.with_pairs else (None, None)
        corpora_B, own_B = self.mixture.locate(positions_B)
        for number, rows in grouped(corpora_B):
            corpus, own = self.corpora[number], own_B[rows]
            sample_ids = corpus.order.samples_at(own)
            sample_ids_B[rows] = sample_ids
            epochs_B[rows] = corpus.order.epochs_at(own)
            # The rows of several corpora alternate: each corpus reads its own side by side, then they are put in place.
            alone = len(rows) == len(positions_B)
            part = tokens_BL if alone else np.empty((len(rows), self.length), dtype=np.int32)
            samples, drawn = corpus.samples, None
            if isinstance(samples, SentencePairs) and cuts_B is not None and labels_B is not None:
                drawn = samples.draw(sample_ids, epochs_B[rows])
                num_tokens_B[rows] = samples.read_pairs(drawn, part)
                touched = np.flatnonzero(corpus.excluded.among(drawn.documents_B2).any(axis=1))
                drawn.labels_B[touched] = UNTOLD
                cuts_B[rows], labels_B[rows] = drawn.lengths_B2[:, 0], drawn.labels_B
            else:
                num_tokens_B[rows] = samples.read(sample_ids, part)
                touched = corpus.excluded.rows_with_any(sample_ids)
            if touched.size:
                pieces_of_touched = _pieces_of(samples, sample_ids[touched], epochs_B[rows][touched])
                hidden = corpus.excluded.hide(pieces_of_touched, part, touched)
                hidden_BL = np.zeros(shape, dtype=np.bool_) if hidden_BL is None else hidden_BL
                hidden_BL[rows[touched]] = hidden
            if not alone:
                tokens_BL[rows] = part
            if continues_BL is not None:
                words = np.zeros(part.shape, dtype=np.bool_)
                tells = samples.stream.has_words
                if tells and isinstance(samples, SentencePairs) and drawn is not None:
                    samples.read_pair_words(drawn, words)
                elif tells:
                    samples.read_words(sample_ids, words)
                continues_BL[rows] = words
        pieces = partial(self._pieces, corpora_B, sample_ids_B, epochs_B)
        return SampleBatch(
            tokens_BL=tokens_BL,
            num_tokens_B=num_tokens_B,
            positions_B=positions_B,
            epochs_B=epochs_B,
            sample_ids_B=sample_ids_B,
            corpora_B=corpora_B,
            hidden_BL=hidden_BL,
            continues_BL=continues_BL,
            segments_BL=pieces().segments(shape) if self.with_segments else None,
            pieces=pieces,
            pair_cuts_B=cuts_B,
            pair_labels_B=labels_B,
        )

    def follow(self, phases: tuple[Phase, ...]) -> None:
        """Let the weights change at other positions from now on.

        Raises:
            RecipeError: They are out of order.
        """
        self.mixture = Mixture(self.mixture.names, phases, self.mixture.seed)

    def advise(self, positions_B: NDArray[np.int64]) -> None:
        """Say which positions are read next; never waits for the disk."""
        corpora_B, own_B = self.mixture.locate(positions_B)
        for number, rows in grouped(corpora_B):
            corpus = self.corpora[number]
            corpus.samples.advise(corpus.order.samples_at(own_B[rows]))

    def positions_of(self, corpus: int, document: int, up_to_position: int) -> NDArray[np.int64]:
        """The positions of the run whose samples hold tokens of a document.

        Args:
            corpus: Index of the corpus in the loader.
            document: Number of the document in the corpus's split.
            up_to_position: Positions below it count.

        Returns:
            int64, ascending, of all epochs so far.

        Raises:
            IndexError: There is no such document.
        """
        part = self.corpora[corpus]
        num_consumed = int(self.mixture.cursors(up_to_position)[corpus])
        positions: list[int] = []
        sample_ids = part.samples.samples_of(np.array([document], dtype=np.int64))
        for epoch in range(-(-num_consumed // part.order.num_samples)):
            if isinstance(part.samples, SentencePairs):  # who exchanged with whom is another matter in every epoch
                sample_ids = part.samples.samples_in(document, epoch)
            for own in part.order.positions_of(sample_ids, epoch).tolist():
                position = self.mixture.position_of(corpus, own) if own < num_consumed else None
                if position is not None:
                    positions.append(position)
        return np.array(sorted(positions), dtype=np.int64)

    def fingerprint_at(self, position: int) -> str:
        """16 hex digits of all that decides the samples before a position.

        Of the phases begun by then: their beginnings, weights, and corpora. What comes later may change, and so may
        the names of the corpora, as long as they sort alike, and the documents excluded.
        """
        phases = []
        seen: list[int] = []  # a corpus goes on in a later phase: its number tells it from another with equal tokens
        for number, phase in enumerate(self.mixture.phases):
            if phase.first >= position:
                break
            members = self.mixture.describe(number)
            seen.extend(corpus for corpus, _ in members if corpus not in seen)
            shares = [f"{seen.index(corpus)}:{self.corpora[corpus].fingerprint}:{share}" for corpus, share in members]
            scattered = f"{mixing.ALGORITHM} seed={self.mixture.seed}" if len(members) > 1 else "alone"
            phases.append(f"{phase.first} {scattered} {' '.join(shares)}")
        return xxhash.xxh3_64_hexdigest("\n".join(phases).encode())

    def cursor_at(self, position: int) -> Cursor:
        """What a checkpoint must remember once the positions below this one are trained on."""
        counts = self.mixture.cursors(position).tolist()
        return Cursor(position, self.fingerprint_at(position), dict(zip(self.mixture.names, counts, strict=True)))

    def _pieces(
        self, corpora_B: NDArray[np.int64], sample_ids_B: NDArray[np.int64], epochs_B: NDArray[np.int64]
    ) -> Pieces:
        parts, rows_of_parts = [], []
        for number, rows in grouped(corpora_B):
            parts.append(_pieces_of(self.corpora[number].samples, sample_ids_B[rows], epochs_B[rows]))
            rows_of_parts.append(rows)
        return join(parts, rows_of_parts)


def _pieces_of(samples: Samples, sample_ids_B: NDArray[np.int64], epochs_B: NDArray[np.int64]) -> Pieces:
    """Where documents begin and end in the rows of these samples in these epochs."""
    if isinstance(samples, SentencePairs):  # of which a part may come from anywhere
        return samples.pieces_of_pairs(samples.draw(sample_ids_B, epochs_B))
    return samples.pieces(sample_ids_B)
