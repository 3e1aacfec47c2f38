"""From shards and a recipe to the samples of a run, in their order, and what is to be predicted of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.config.data import CorpusConfig, DataConfig
from launcher.config.objectives import MaskedObjective
from launcher.config.recipe import Recipe
from launcher.errors import ShardError, TokenizerError
from launcher.objectives.base import Objective
from launcher.objectives.build import Builder
from launcher.samples.bestfit import BestFit
from launcher.samples.chunks import load_or_make_plan as load_or_make_chunks
from launcher.samples.loader import Corpus, Loader
from launcher.samples.mixture import Mixture, Phase
from launcher.samples.packing import load_or_make_plan
from launcher.samples.padded import Padded
from launcher.samples.passed_over import Change, Window, first_of_change
from launcher.samples.sentence_pairs import PairKind, SentencePairs, refuse_without_sentences
from launcher.samples.shapes import Samples
from launcher.samples.windows import Windows
from launcher.shards.blocks import FIX
from launcher.shards.manifest import SPLITS, Manifest, TokenizerInfo, read_manifest
from launcher.shards.reader import Split
from launcher.shards.search import excluded_of_corpora, read_names
from launcher.shards.verify import tokenizer_problems

VALIDATION_SEED = 0x76616C  # the same noise at every validation of every run, so that losses compare
PADDING_WORTH_TELLING = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The samples of a run and what is to be predicted of them."""

    manifests: dict[str, Manifest]
    """Of the corpora, by name."""
    objective: Objective
    train: Loader
    fixed_objective: Objective
    """The same objective with one noise for every validation of every run, so that losses compare."""
    validation: tuple[Loader, ...]
    """One for each corpus that holds documents out."""

    @property
    def tokenizer(self) -> TokenizerInfo:
        """The tokenizer of all corpora."""
        return next(iter(self.manifests.values())).tokenizer


def open_data(recipe: Recipe) -> Data:
    """Open the shards in the order and with the objective of the recipe.

    Raises:
        ShardError: They are missing, damaged, or lack what the objective or an exclude list asks for.
        TokenizerError: The corpora of a mixture were made with several tokenizers.
        ObjectiveError: The tokenizer or the length cannot serve the objective.
        RecipeError: The weights of a mixture cannot be kept.
    """
    data, seed = recipe.data, recipe.train.seed
    manifests = {name: read_manifest(corpus.shards) for name, corpus in data.corpora.items()}
    tokenizer = one_tokenizer(data, manifests)
    objective = build_objective(recipe, tokenizer, manifests, seed)
    fixed = build_objective(recipe, tokenizer, manifests, VALIDATION_SEED)
    apart = data.keeps_documents_apart
    train: list[Corpus] = []
    validation: list[Loader] = []
    splits = {
        (name, split): Split(corpus.shards, split, manifests[name], data.verify)
        for name, corpus in data.corpora.items()
        for split in SPLITS
    }
    excluded = excluded_of_corpora({name: corpus.exclude for name, corpus in data.corpora.items()}, splits)
    for (name, split), documents in splits.items():
        hidden = excluded[name, split]
        if split == "train":
            train.append(_corpus(name, documents, recipe, objective, seed, hidden))
        elif documents.num_documents:
            held_out = _corpus(name, documents, recipe, fixed, VALIDATION_SEED, hidden)
            validation.append(Loader((held_out,), with_words=fixed.needs_words, with_segments=apart))
    mixture = Mixture(tuple(data.corpora), _phases(recipe, (), ()), seed)
    return Data(
        manifests=manifests,
        objective=objective,
        train=Loader(tuple(train), mixture, with_words=objective.needs_words, with_segments=apart),
        fixed_objective=fixed,
        validation=tuple(validation),
    )


def refuse_unkept(recipe: Recipe) -> None:
    """What can be told of weights and exclude lists before a shard is opened.

    Raises:
        RecipeError: The weights of a mixture cannot be kept.
        ShardError: A list cannot be read, or a line of it names no document.
    """
    Mixture(tuple(recipe.data.corpora), _phases(recipe, (), ()), recipe.train.seed)
    for corpus in recipe.data.corpora.values():
        if corpus.exclude is not None:
            read_names(corpus.exclude)


def pass_over(data: Data, recipe: Recipe, passed_over: Sequence[Window], changes: Sequence[Change]) -> None:
    """Let the weights of a mixture change where their steps' data begins in a run that passed over some.

    Args:
        data: Of the run; its later batches follow.
        recipe: Of the run.
        passed_over: Windows that no step trains on.
        changes: Of weights, that came in amid one of them.

    Raises:
        RecipeError: A change was added before one that came in already.
    """
    data.train.follow(_phases(recipe, passed_over, changes))


def build_objective(
    recipe: Recipe, tokenizer: TokenizerInfo, manifests: Mapping[str, Manifest], seed: int
) -> Objective:
    """The objective the recipe names.

    Args:
        recipe: Of the run.
        tokenizer: Of the shards.
        manifests: Of the corpora, by name.
        seed: Chooses the noise of every position.

    Raises:
        ObjectiveError: The tokenizer or the length cannot serve it.
        ShardError: It masks words, and a corpus does not tell them.
    """
    tells_words = {name: manifest.words for name, manifest in manifests.items()}
    builder = Builder(seq_len=recipe.data.seq_len, tokenizer=tokenizer, seed=seed, tells_words=tells_words)
    return builder.build(recipe.objective)


def one_tokenizer(data: DataConfig, manifests: dict[str, Manifest]) -> TokenizerInfo:
    """The tokenizer that made all corpora, its files as they were written.

    Raises:
        TokenizerError: There are several.
        ShardError: Its copy beside the shards is damaged.
    """
    (first, manifest), *others = manifests.items()
    for name, other in others:
        if other.tokenizer.sha256 != manifest.tokenizer.sha256:
            raise TokenizerError(
                f"{name} was tokenized with {other.tokenizer.name}, {first} with {manifest.tokenizer.name}",
                "data.mixture",
                "prepare them with one tokenizer: the same ids mean other words",
            )
    for name, corpus in data.corpora.items():
        _check_tokenizer_files(corpus, manifests[name])
    return manifest.tokenizer


def wasted(data: Data) -> list[str]:
    """What packing costs, a line for each corpus in which it is worth telling."""
    lines = []
    for corpus in data.train.corpora:
        samples = corpus.samples
        if isinstance(samples, SentencePairs) and (untold := samples.untold_share) >= PADDING_WORTH_TELLING:
            lines.append(f"{corpus.name}: {untold:.0%} of the pairs have no label: too short, or no exchange fits")
        if (padding := samples.padding_share) < PADDING_WORTH_TELLING:
            continue
        dropped = f", {samples.cut_share:.1%} of its tokens do not fit" if isinstance(samples, Padded) else ""
        lines.append(f"{corpus.name}: {padding:.1%} of every batch is padding{dropped}")
    return lines


def _check_tokenizer_files(corpus: CorpusConfig, manifest: Manifest) -> None:
    for problem in tokenizer_problems(corpus.shards, manifest):
        where, _, what = problem.partition(": ")
        raise ShardError(what, where, FIX)


def _phases(recipe: Recipe, passed_over: Sequence[Window], changes: Sequence[Change]) -> tuple[Phase, ...]:
    position_at = recipe.batch.schedule.position_at
    # A corpus with weight 0 waits for its phase: the mixture only names those that get something.
    return tuple(
        Phase(
            first=first_of_change(step, position_at(step), passed_over, changes),
            weights={name: w for name, w in weights.items() if w},
        )
        for step, weights in recipe.data.phases().items()
    )


def _corpus(
    name: str, split: Split, recipe: Recipe, objective: Objective, seed: int, exclude: NDArray[np.int64]
) -> Corpus:
    """A split's samples, cut as the recipe says, in a keyed order."""
    pairs = recipe.objective.sentence_pairs if isinstance(recipe.objective, MaskedObjective) else "none"
    samples = _samples(split, recipe.data, objective) if pairs == "none" else _pairs(split, objective, pairs, seed)
    try:
        order = samples.order(seed)
    except ShardError as error:
        where = f"data.mixture.{name}" if recipe.data.mixture else error.where
        raise ShardError(error.what, f"{where}: {split.folder}, {split.name}", error.fix) from None
    return Corpus(name, samples, order, exclude)


def _samples(split: Split, data: DataConfig, objective: Objective) -> Samples:
    length, stride, fill = objective.window_length, objective.window_stride, objective.fill_id
    if data.packing == "concat":
        return Windows(split, length, stride, fill)
    if data.packing == "pad":
        return Padded(split, length, fill)
    # Kept beside the shards, which are the same for every run; made again where they may not be written to.
    path = split.folder / ".packing" / f"{split.name}-{length}-{stride}.npz"
    return BestFit(split, length, stride, fill, load_or_make_plan(split, length, stride, path))


def _pairs(split: Split, objective: Objective, kind: PairKind, seed: int) -> SentencePairs:
    length, fill = objective.window_length, objective.fill_id
    refuse_without_sentences(split, str(split.folder))
    path = split.folder / ".packing" / f"{split.name}-sentences-{length}.npz"
    return SentencePairs(split, length, fill, kind, seed, load_or_make_chunks(split, length, path))
