"""From shards and a recipe to this rank's part of each step: samples and objective put together.

Every batch is a pure function of the step, so a run that starts again reads nothing it does not train on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.config.batch import BatchPlan
from launcher.config.data import CorpusConfig, DataConfig
from launcher.config.objectives import MaskedObjective
from launcher.config.recipe import Recipe
from launcher.engine.records import Arrays, EvalBatch, StepBatch
from launcher.errors import ShardError, TokenizerError
from launcher.objectives.base import IGNORE_INDEX, Batch, Objective
from launcher.objectives.build import Builder
from launcher.objectives.mixed import PART_IDS, ObjectiveMixture
from launcher.samples.ahead import ahead
from launcher.samples.bestfit import BestFit
from launcher.samples.chunks import load_or_make_plan as load_or_make_chunks
from launcher.samples.digest import combine, digest
from launcher.samples.loader import Corpus, Loader
from launcher.samples.mixture import Mixture, Phase
from launcher.samples.packing import load_or_make_plan
from launcher.samples.padded import Padded
from launcher.samples.passed_over import Change, Window, first_of_change, moved_on
from launcher.samples.passes import pass_positions
from launcher.samples.sentence_pairs import PairKind, SentencePairs, refuse_without_sentences
from launcher.samples.shapes import Samples
from launcher.samples.windows import Windows
from launcher.shards.manifest import SPLITS, Manifest, TokenizerInfo, read_manifest
from launcher.shards.reader import Split
from launcher.shards.search import excluded_of_corpora, read_names
from launcher.shards.verify import tokenizer_problems

VALIDATION_SEED = 0x76616C  # the same noise at every validation of every run, so that losses compare
PADDING_WORTH_TELLING = 0.01
LOOKED_AT = 256
"""Samples among which the longest one is looked for (assumption: more change it little)."""
POSITION_IDS = "position_ids"
_NO_PAIRS = np.empty(0, dtype=np.int64)


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


def step_batches(
    data: Data, plan: BatchPlan, rank: int, first: int, last: int, passed_over: Sequence[Window] = ()
) -> Iterator[StepBatch]:
    """This rank's part of each step from `first` (steps already taken) to `last`: a pure function of the step.

    A thread makes the next one while the one before is trained on.

    Args:
        data: Opened shards.
        plan: How a batch is cut into passes.
        rank: This one.
        first: Steps already taken.
        last: Steps taken in the end.
        passed_over: Windows of the data that no step trains on.
    """
    return ahead(made_batches(data, plan, rank, first, last, passed_over))


def made_batches(
    data: Data, plan: BatchPlan, rank: int, first: int, last: int, passed_over: Sequence[Window] = ()
) -> Iterator[StepBatch]:
    """What `step_batches` gives, each made when it is asked for."""
    rank, part = divmod(rank, plan.ranks_per_sample)
    if first < last:
        data.train.advise(_positions(plan, rank, first, passed_over))
    for step in range(first, last):
        if step + 1 < last:  # the disk reads the next step's blocks while this one is made
            data.train.advise(_positions(plan, rank, step + 1, passed_over))
        passes: list[Arrays] = []
        digests = []
        num_targets = num_tokens = num_pairs = 0
        for positions in _positions(plan, rank, step, passed_over).reshape(plan.passes_at(step), -1):
            batch = data.objective.batch(data.train.fetch(positions))
            if part == 0:  # of each sample once
                digests.append(combine(digest(positions, batch)))
            batch = part_of(batch, part, plan.sequence_parallel)
            num_targets += int(np.count_nonzero(batch["labels"] != IGNORE_INDEX))
            num_tokens += int(batch["attention_mask"].sum())
            num_pairs += int(np.count_nonzero(batch.get("pair_labels", _NO_PAIRS) != IGNORE_INDEX))
            passes.append(model_inputs(batch))
        total = combine(np.array(digests, dtype=np.uint64))
        yield StepBatch(
            passes=passes, num_targets=num_targets, num_tokens=num_tokens, num_pairs=num_pairs, digest=total
        )


def longest_step(data: Data, plan: BatchPlan, step: int, rank: int) -> StepBatch:
    """Passes as those of a step, made of one sample again and again: the one of its first with most tokens.

    Args:
        data: Of the run.
        plan: How a step is cut.
        step: Steps already taken.
        rank: This one.
    """
    first, size = plan.schedule.position_at(step), plan.schedule.global_batch_at(step)
    batch = data.objective.batch(data.train.fetch(np.arange(first, first + min(size, LOOKED_AT), dtype=np.int64)))
    is_target_BS, is_token_BS = batch["labels"] != IGNORE_INDEX, batch["attention_mask"] != 0
    row = int(np.argmax(is_target_BS.sum(axis=1) + is_token_BS.sum(axis=1)))
    batch = part_of(batch, rank % plan.ranks_per_sample, plan.sequence_parallel)
    inputs = {name: np.repeat(array[row : row + 1], plan.micro_batch, 0) for name, array in model_inputs(batch).items()}
    # Two passes show what accumulating takes; more take no more.
    passes: list[Arrays] = [inputs] * min(plan.passes_at(step), 2)
    rows = len(passes) * plan.micro_batch
    return StepBatch(
        passes=passes,
        num_targets=rows * int(is_target_BS[row].sum()),
        num_tokens=rows * int(is_token_BS[row].sum()),
        num_pairs=rows * int(batch.get("pair_labels", _NO_PAIRS)[row : row + 1].size),
        digest=0,
    )


def validation_batches(
    recipe: Recipe, data: Data, world_size: int, rank: int, sequence_parallel: int = 1, tensor_parallel: int = 1
) -> Iterator[EvalBatch]:
    """This rank's validation batches; as many on every rank, since a forward pass under ZeRO-3 is a collective.

    Each is of one corpus, and of a mixture of objectives made by one part, so that both can be measured by themselves.
    """
    ranks_per_sample = sequence_parallel * tensor_parallel
    (rank, part), world_size = divmod(rank, ranks_per_sample), world_size // ranks_per_sample
    size = recipe.eval.micro_batch
    every = size * world_size
    special = data.tokenizer.special
    markers = np.array([token_id for token_id in special.all_ids if token_id != special.unk], dtype=np.int64)
    for corpus, loader in enumerate(data.validation):
        num_samples = min(loader.num_samples, recipe.eval.max_samples or loader.num_samples)
        for made_by, positions in _by_part(data.fixed_objective, num_samples):
            last = len(positions) - 1
            for first in range(0, len(positions), every):
                wanted = first + rank * size + np.arange(size, dtype=np.int64)
                ahead_of = wanted + every if first else np.append(wanted, wanted + every)
                loader.advise(positions[np.minimum(ahead_of, last)])
                batch = data.fixed_objective.batch(loader.fetch(positions[np.minimum(wanted, last)]))
                # Rows that only fill the last round count for nothing.
                for name in ("labels", "pair_labels"):
                    if name in batch:
                        batch[name][wanted > last] = IGNORE_INDEX
                batch = part_of(batch, part, sequence_parallel)
                is_text = (batch["labels"] >= 0) & ~np.isin(batch["labels"], markers)
                num_text = int(is_text.sum())
                yield EvalBatch(corpus=corpus, part=made_by, inputs=model_inputs(batch), num_text_targets=num_text)


def _by_part(objective: Objective, num_samples: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The parts of a mixture and the positions of their samples; all of them for an objective that is none."""
    positions = np.arange(num_samples, dtype=np.int64)
    if not isinstance(objective, ObjectiveMixture):
        yield 0, positions
        return
    parts = objective.parts_at(positions)
    for part in range(len(objective.parts)):
        yield part, positions[parts == part]


def bytes_per_token(data: Data) -> dict[str, float | None]:
    """Of the held-out documents of each corpus that has some, document ends not counted; None if unknown."""
    sizes = {}
    for loader in data.validation:
        name = loader.corpora[0].name
        split = data.manifests[name].splits["validation"]
        sizes[name] = split.text_bytes / (split.num_tokens - split.num_documents) if split.text_bytes else None
    return sizes


def model_inputs(batch: Arrays) -> Arrays:
    """Leave out an attention mask that hides nothing, or what the documents' numbers tell: attention is faster without;
    and what no model takes.
    """
    needless = "segment_ids" in batch or POSITION_IDS in batch or batch["attention_mask"].all()
    without = {PART_IDS, "attention_mask"} if needless else {PART_IDS}
    return {name: array for name, array in batch.items() if name not in without}


def part_of(batch: Batch, part: int, of: int) -> Batch:
    """What one of several ranks computes of each sequence; it keeps no mask of attention (`models.sequence_parallel`).

    Args:
        batch: The objective's arrays, [B, S] or [B].
        part: Which of the parts.
        of: How many there are.
    """
    if of == 1:
        return batch
    length = batch["input_ids"].shape[1] // of
    places = np.arange(part * length, (part + 1) * length, dtype=np.int64)
    cut = {name: array[:, places] if array.ndim > 1 else array for name, array in batch.items()}
    return cut | {POSITION_IDS: np.broadcast_to(places, cut["input_ids"].shape).copy()}


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


def _positions(plan: BatchPlan, rank: int, step: int, passed_over: Sequence[Window]) -> NDArray[np.int64]:
    """Positions of this rank in a step, its passes one after another."""
    first, size = plan.schedule.position_at(step), plan.schedule.global_batch_at(step)
    first = moved_on(first, passed_over)
    return np.concatenate(
        [
            pass_positions(first, index, rank, plan.world_size, plan.micro_batch, size)
            for index in range(plan.passes_at(step))
        ]
    )


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


def _check_tokenizer_files(corpus: CorpusConfig, manifest: Manifest) -> None:
    for problem in tokenizer_problems(corpus.shards, manifest):
        where, _, what = problem.partition(": ")
        raise ShardError(what, where, "restore the file, or prepare the shards again, with --overwrite")
