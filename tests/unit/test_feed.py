"""The global batch of a step is the same whatever the machine looks like."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from token_shards import END, random_documents, text_hash, write_shards

from launcher.config.batch import plan_batch
from launcher.config.loading import check_recipe
from launcher.config.objectives import part_names
from launcher.config.recipe import BatchConfig, Recipe
from launcher.errors import ShardError, TokenizerError
from launcher.feed.batches import made_batches, model_inputs, step_batches, validation_batches
from launcher.feed.data import Data, open_data, pass_over, wasted
from launcher.objectives.base import IGNORE_INDEX
from launcher.samples.digest import combine, digest
from launcher.samples.passed_over import moved_on
from launcher.shards.manifest import read_manifest

GLOBAL_BATCH = 48
PACKINGS = ("concat", "bestfit", "pad")
# The tiny model of one that needs the same head, and the objective.
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlm": ("mlm", {"kind": "mlm"}),
    "mlm, n-grams": ("mlm", {"kind": "mlm", "unit": "ngram"}),
    "mlm, spans": ("mlm", {"kind": "mlm", "unit": "span"}),
    "clm": ("clm", {"kind": "clm"}),
    "span": ("span", {"kind": "span"}),
    "prefix": ("span", {"kind": "prefix"}),
    "prefix, causal": ("clm", {"kind": "prefix", "head": "causal"}),
    "ul2": ("span", {"kind": "ul2", "mode_tokens": [22, 23, 24]}),
    "mixture": (
        "clm",
        {"kind": "mixture", "parts": [{"kind": "clm", "weight": 0.5}, {"kind": "prefix", "head": "causal"}]},
    ),
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    for seed, name in enumerate(("law", "wiki", "late")):
        held_out = random_documents(6, 15, seed=seed + 10)
        write_shards(folder / name, random_documents(150, 15, seed=seed), held_out, documents_per_shard=40, words=True)
    return {name: folder / name for name in ("law", "wiki", "late")}


def recipe_of(objective: str, data: dict[str, Any], /, **changes: Any) -> Recipe:
    tree = tiny.recipe_tree(objective, Path("unused"), Path("runs"), batch__global_batch=GLOBAL_BATCH, **changes)
    tree["data"] = {"seq_len": 24, **data}
    return check_recipe(tree, "a test")


def mixture(corpora: dict[str, Path], **weights: float) -> dict[str, Any]:
    return {"mixture": {name: {"shards": str(corpora[name]), "weight": weight} for name, weight in weights.items()}}


def digests(data: Data, world_size: int, micro_batch: int | None, first: int, last: int) -> list[int]:
    plan = plan_batch(GLOBAL_BATCH, micro_batch, world_size)
    ranks = [[batch.digest for batch in step_batches(data, plan, rank, first, last)] for rank in range(world_size)]
    return [sum(each) % 2**64 for each in zip(*ranks, strict=True)]


@pytest.mark.parametrize("documents", ["joined", "apart"])
@pytest.mark.parametrize(
    ("objective", "packing"),
    [
        *((name, packing) for name in ("mlm", "clm", "span") for packing in PACKINGS),
        *((name, "concat") for name in OBJECTIVES if name not in ("mlm", "clm", "span")),
        ("ul2", "bestfit"),
        ("mixture", "pad"),
    ],
)
def test_the_batch_of_a_step_is_the_same_on_any_ranks_in_any_passes_from_any_start(
    corpora: dict[str, Path], objective: str, packing: str, documents: str
) -> None:
    model, section = OBJECTIVES[objective]
    text = {**mixture(corpora, law=0.7, wiki=0.3), "packing": packing, "documents": documents}
    recipe = recipe_of(model, text, objective=section)
    whole = digests(open_data(recipe), 1, None, 0, 12)
    assert len(set(whole)) == 12
    for world_size, micro_batch in ((2, 4), (3, 16), (4, None), (8, 3), (1, 1)):
        assert digests(open_data(recipe), world_size, micro_batch, 0, 4) == whole[:4]
        assert digests(open_data(recipe), world_size, micro_batch, 7, 12) == whole[7:]


def test_a_growing_batch_has_the_same_samples_on_any_ranks_from_any_start(corpora: dict[str, Path]) -> None:
    recipe = recipe_of("mlm", mixture(corpora, law=0.7, wiki=0.3))
    stages = [{"step": 0, "global_batch": 12}, {"step": 3, "global_batch": 24}, {"samples": 70, "global_batch": 48}]
    batch = BatchConfig.model_validate({"global_batch": 48, "warmup": stages})
    data = open_data(recipe)

    def steps(world_size: int, micro_batch: int | None, first: int) -> list[int]:
        plan = plan_batch(batch.schedule, micro_batch, world_size)
        ranks = [[part.digest for part in step_batches(data, plan, rank, first, 8)] for rank in range(world_size)]
        return [sum(each) % 2**64 for each in zip(*ranks, strict=True)]

    whole = steps(1, None, 0)
    assert len(set(whole)) == 8
    for world_size, micro_batch in ((2, 3), (3, None), (4, 1), (12, 1)):
        assert steps(world_size, micro_batch, 0) == whole
        assert steps(world_size, micro_batch, 4) == whole[4:]
    for step in range(8):  # the samples of a step are those at its positions
        positions = np.arange(batch.schedule.position_at(step), batch.schedule.position_at(step + 1))
        assert combine(digest(positions, data.objective.batch(data.train.fetch(positions)))) == whole[step]


def test_a_change_of_weights_ahead_and_a_corpus_added_leave_the_past_as_it_was(corpora: dict[str, Path]) -> None:
    plain = open_data(recipe_of("mlm", mixture(corpora, law=0.7, wiki=0.3)))
    later = mixture(corpora, law=0.7, wiki=0.3, late=0)
    later["changes"] = [{"step": 5, "weights": {"law": 0.2, "late": 0.5}}]
    changed = open_data(recipe_of("mlm", later))
    assert digests(plain, 2, None, 0, 5) == digests(changed, 2, None, 0, 5)
    assert digests(plain, 2, None, 5, 6) != digests(changed, 2, None, 5, 6)
    position = 5 * GLOBAL_BATCH
    assert plain.train.fingerprint_at(position) == changed.train.fingerprint_at(position)
    batch = changed.train.fetch(np.arange(9 * GLOBAL_BATCH, dtype=np.int64))
    assert not (batch.corpora_B[:position] == 2).any()
    for corpus in range(3):  # nothing repeated, nothing skipped
        count = np.count_nonzero(batch.corpora_B == corpus)
        expected = changed.train.corpora[corpus].order.samples_at(np.arange(count))
        assert batch.sample_ids_B[batch.corpora_B == corpus].tolist() == expected.tolist()


def test_weights_change_at_their_step_in_a_run_that_passed_over_data(corpora: dict[str, Path]) -> None:
    """It took steps 4 to 7 and went back to step 3: a change at step 5 is behind it, one at step 8 ahead."""
    plan = plan_batch(GLOBAL_BATCH, None, 1)
    window, changes = [[3 * GLOBAL_BATCH, 4 * GLOBAL_BATCH]], [[5, 5 * GLOBAL_BATCH]]
    text = mixture(corpora, law=1, wiki=0, late=0)
    text["changes"] = [{"step": 5, "weights": {"law": 0, "wiki": 1}}]
    before = open_data(recipe_of("mlm", text))
    pass_over(before, recipe_of("mlm", text), window, changes)
    text["changes"].append({"step": 8, "weights": {"wiki": 0.5, "late": 0.5}})
    data = open_data(recipe_of("mlm", text))
    pass_over(data, recipe_of("mlm", text), window, changes)
    position = moved_on(7 * GLOBAL_BATCH, window)  # far behind the sample of step 8 in a run that passed over nothing
    assert before.train.fingerprint_at(position) == data.train.fingerprint_at(position)
    batch = data.train.fetch(np.arange(15 * GLOBAL_BATCH, dtype=np.int64))
    corpora_of_steps = [
        set(batch.corpora_B[moved_on(s * GLOBAL_BATCH, window) :][:GLOBAL_BATCH].tolist()) for s in range(11)
    ]
    assert corpora_of_steps == [{0}] * 3 + [{1}] * 5 + [{1, 2}] * 3
    for corpus in range(3):  # nothing repeated, nothing skipped
        count = np.count_nonzero(batch.corpora_B == corpus)
        expected = data.train.corpora[corpus].order.samples_at(np.arange(count))
        assert batch.sample_ids_B[batch.corpora_B == corpus].tolist() == expected.tolist()
    (made,) = made_batches(data, plan, 0, 8, 9, window)
    positions = moved_on(8 * GLOBAL_BATCH, window) + np.arange(GLOBAL_BATCH)
    assert made.digest == combine(digest(positions, data.objective.batch(data.train.fetch(positions))))


def test_rows_tell_their_documents_apart_where_they_are_to_be(corpora: dict[str, Path]) -> None:
    shards = {"shards": str(corpora["law"]), "packing": "bestfit"}
    data = open_data(recipe_of("clm", {**shards, "documents": "apart"}))
    rows = data.train.fetch(np.arange(data.train.num_samples, dtype=np.int64))
    batch = data.objective.batch(rows)
    # In the test's shards documents end with END, and nowhere else does it stand.
    inputs_BS, segments_BS = batch["input_ids"], batch["segment_ids"]
    ends_BS = (inputs_BS == END) & (segments_BS >= 0)
    assert ends_BS.sum() > len(inputs_BS) / 2
    assert (segments_BS[:, 1:] != segments_BS[:, :-1])[ends_BS[:, :-1]].all()
    assert (batch["labels"][ends_BS] == IGNORE_INDEX).all()
    assert "segment_ids" not in data.objective.batch(open_data(recipe_of("clm", shards)).train.fetch(np.arange(4)))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_an_excluded_document_becomes_padding_and_moves_nobody(
    corpora: dict[str, Path], tmp_path: Path, objective: str, packing: str
) -> None:
    shards = str(corpora["law"])
    takedown = tmp_path / "takedown.txt"
    takedown.write_text("train.jsonl:3\n")
    plain = open_data(recipe_of(objective, {"shards": shards, "packing": packing}))
    data = open_data(recipe_of(objective, {"shards": shards, "packing": packing, "exclude": str(takedown)}))
    positions = np.arange(plain.train.num_samples, dtype=np.int64)
    rows = data.train.fetch(positions)
    assert rows.hidden_BL is not None
    before, after = plain.objective.batch(plain.train.fetch(positions)), data.objective.batch(rows)
    gone = (before["attention_mask"] == 1) & (after["attention_mask"] == 0)
    assert gone.any()
    assert (after["labels"][gone] == IGNORE_INDEX).all()
    assert np.array_equal(after["input_ids"][~gone], before["input_ids"][~gone])
    assert data.train.fingerprint_at(len(positions)) == plain.train.fingerprint_at(len(positions))


def test_corpora_may_share_a_list_that_names_documents_of_any_of_them(corpora: dict[str, Path], tmp_path: Path) -> None:
    takedown = tmp_path / "takedown.txt"
    texts = {name: random_documents(150, 15, seed=seed) for seed, name in enumerate(("law", "wiki"))}
    longest = {name: max(range(150), key=lambda number: len(texts[name][number])) for name in texts}
    names = {name: text_hash(texts[name][number]) for name, number in longest.items()}
    takedown.write_text("\n".join(names.values()))
    text = mixture(corpora, law=0.5, wiki=0.5)
    for corpus in text["mixture"].values():
        corpus["exclude"] = str(takedown)
    data = open_data(recipe_of("mlm", text))
    assert [corpus.exclude.tolist() for corpus in data.train.corpora] == [[longest["law"]], [longest["wiki"]]]
    takedown.write_text(f"{names['law']}\n{'0' * 32}\n")
    with pytest.raises(ShardError, match=f"no document is called {'0' * 32}"):
        open_data(recipe_of("mlm", text))
    text["mixture"]["law"].pop("exclude")
    takedown.write_text(names["law"])
    with pytest.raises(ShardError, match="no document is called"):  # it lies in a corpus that has no list
        open_data(recipe_of("mlm", text))


def test_a_corpus_without_a_sample_is_named(corpora: dict[str, Path], tmp_path: Path) -> None:
    write_shards(tmp_path / "empty", [])
    text = mixture({**corpora, "empty": tmp_path / "empty"}, law=0.5, empty=0)
    with pytest.raises(ShardError, match="there is no sample to train on") as told:
        open_data(recipe_of("mlm", text))
    assert told.value.where == f"data.mixture.empty: {tmp_path / 'empty'}, train"


def test_whole_words_are_masked_from_the_shards_own_plane(corpora: dict[str, Path], tmp_path: Path) -> None:
    shards = {"shards": str(corpora["law"])}
    data = open_data(recipe_of("mlm", shards, objective__unit="word", objective__mask_share=0.5))
    rows = data.train.fetch(np.arange(40, dtype=np.int64))
    assert rows.continues_BL is not None
    # The test's shards say that an odd id continues the word before it, but at the ends of documents.
    inside = (rows.tokens_BL % 2 == 1) & (rows.tokens_BL != END)
    assert (rows.continues_BL <= inside).all()
    batch = data.objective.batch(rows)
    chosen = batch["labels"][:, 1:-1] != IGNORE_INDEX
    assert (chosen[:, 1:] == chosen[:, :-1])[rows.continues_BL[:, 1:]].all()
    write_shards(tmp_path / "plain", random_documents(30, 15))
    with pytest.raises(ShardError, match="--words"):
        open_data(recipe_of("mlm", {"shards": str(tmp_path / "plain")}, objective__unit="word"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that tells no words."""
    folder = tmp_path_factory.mktemp("wordless") / "plain"
    write_shards(folder, random_documents(150, 15, seed=7), random_documents(6, 15, seed=8))
    return folder


def test_spans_are_spans_of_words_where_a_corpus_tells_them(corpora: dict[str, Path], plain: Path) -> None:
    with_words = open_data(recipe_of("mlm", {"shards": str(corpora["law"])}, objective__unit="span"))
    assert with_words.objective.needs_words
    assert not open_data(recipe_of("mlm", {"shards": str(plain)}, objective__unit="span")).objective.needs_words
    for unit in ("word", "ngram"):
        with pytest.raises(ShardError, match=r"continue a word[\s\S]*'plain'[\s\S]*--words"):
            open_data(recipe_of("mlm", mixture({**corpora, "plain": plain}, law=1, plain=1), objective__unit=unit))


@pytest.mark.parametrize("first", ["law", "plain"])
def test_a_corpus_added_to_spans_masks_the_others_as_they_were_whether_it_tells_words_or_not(
    first: str, corpora: dict[str, Path], plain: Path
) -> None:
    folders = {**corpora, "plain": plain}
    (late,) = {"law", "plain"} - {first}
    before = open_data(recipe_of("mlm", mixture(folders, **{first: 1}), objective__unit="span"))
    later = mixture(folders, **{first: 1, late: 0})
    later["changes"] = [{"step": 5, "weights": {late: 1}}]
    after = open_data(recipe_of("mlm", later, objective__unit="span"))
    assert digests(before, 2, None, 0, 5) == digests(after, 2, None, 0, 5)
    (held_out,) = before.validation
    positions = np.arange(held_out.num_samples, dtype=np.int64)
    for name, array in before.fixed_objective.batch(held_out.fetch(positions)).items():
        of_first = after.fixed_objective.batch(after.validation[0].fetch(positions))
        assert np.array_equal(array, of_first[name])


def test_what_made_a_sample_is_told_and_no_model_is_given_it(corpora: dict[str, Path]) -> None:
    model, section = OBJECTIVES["ul2"]
    data = open_data(recipe_of(model, {"shards": str(corpora["law"])}, objective=section))
    batch = data.objective.batch(data.train.fetch(np.arange(60, dtype=np.int64)))
    assert set(batch["part_ids"].tolist()) == set(range(7))
    assert set(model_inputs(batch)) == {"input_ids", "labels", "attention_mask", "decoder_input_ids"}


def test_every_token_is_in_one_sample_under_a_mixture_of_objectives(corpora: dict[str, Path]) -> None:
    model, section = OBJECTIVES["ul2"]
    data = open_data(recipe_of(model, {"shards": str(corpora["law"])}, objective=section))
    rows = data.train.fetch(np.arange(data.train.num_samples, dtype=np.int64))
    assert rows.num_tokens_B.sum() == read_manifest(corpora["law"]).splits["train"].num_tokens


def test_every_corpus_is_validated_on_its_own_documents(corpora: dict[str, Path]) -> None:
    recipe = recipe_of("clm", mixture(corpora, law=0.7, wiki=0.3), eval__max_samples=None)
    data = open_data(recipe)
    num_targets = sum(
        int(np.count_nonzero(batch.inputs["labels"] != IGNORE_INDEX))
        for rank in range(2)
        for batch in validation_batches(recipe, data, 2, rank)
    )
    held_out = [read_manifest(corpora[name]).splits["validation"].num_tokens for name in ("law", "wiki")]
    assert num_targets == sum(held_out) - 2  # all but the first token of each


def test_every_part_of_a_mixture_of_objectives_is_validated_on_its_own_samples(corpora: dict[str, Path]) -> None:
    model, section = OBJECTIVES["ul2"]
    text = mixture(corpora, law=0.7, wiki=0.3)
    recipe = recipe_of(model, text, objective=section, eval__max_samples=None, eval__micro_batch=2)
    data = open_data(recipe)
    together: list[tuple[int, int, bytes]] = []
    for loader, corpus in zip(data.validation, range(2), strict=True):
        whole = data.fixed_objective.batch(loader.fetch(np.arange(loader.num_samples, dtype=np.int64)))
        made_by = whole["part_ids"].tolist()
        together += [(corpus, made_by[row], whole["labels"][row].tobytes()) for row in range(len(made_by))]
    seen: list[tuple[int, int, bytes]] = []
    shapes = []
    for rank in range(3):
        batches = list(validation_batches(recipe, data, 3, rank))
        shapes.append([(batch.corpus, batch.part, batch.inputs["labels"].shape) for batch in batches])
        for batch in batches:
            counted = [row for row in batch.inputs["labels"] if (row >= 0).any()]
            seen += [(batch.corpus, batch.part, row.tobytes()) for row in counted]
    assert sorted(seen) == sorted(together)
    assert len({part for _, part, _ in seen}) > 3
    assert shapes[0] == shapes[1] == shapes[2]  # a forward pass under ZeRO-3 is a collective


def test_parts_are_called_by_what_tells_them_apart() -> None:
    ul2 = part_names(recipe_of("span", {"shards": "unused"}, objective={"kind": "ul2"}).objective)
    assert len(set(ul2)) == len(ul2) == 7
    assert ul2[:3] == ("span, mode R", "span, mean_span 8.0, mode R", "prefix, written_share 0.25, mode S")
    same = {"kind": "mixture", "parts": [{"kind": "clm", "weight": 0.5}, {"kind": "clm", "fim_share": 0.5}]}
    assert part_names(recipe_of("clm", {"shards": "unused"}, objective=same).objective) == ("clm", "clm, fim_share 0.5")
    assert part_names(recipe_of("clm", {"shards": "unused"}).objective) == ()


@pytest.mark.parametrize("name", ["clm", "span", "mlm"])
def test_bytes_are_counted_of_tokens_that_stand_for_text(name: str, corpora: dict[str, Path]) -> None:
    recipe = recipe_of(name, {"shards": str(corpora["law"])}, eval__max_samples=None)
    data = open_data(recipe)
    special = data.tokenizer.special
    for batch in validation_batches(recipe, data, 1, 0):
        labels = batch.inputs["labels"]
        markers = {*special.all_ids, special.document_end} - {special.unk}
        expected = sum(1 for label in labels.reshape(-1).tolist() if label >= 0 and label not in markers)
        assert batch.num_text_targets == expected
        assert name != "span" or expected < np.count_nonzero(labels >= 0)


def test_corpora_of_other_tokenizers_do_not_mix(corpora: dict[str, Path], tmp_path: Path) -> None:
    other = tiny.make_shards(tmp_path)
    with pytest.raises(TokenizerError, match=r"wiki was tokenized with tokenizer, law with none"):
        open_data(recipe_of("mlm", mixture({**corpora, "wiki": other}, law=0.7, wiki=0.3)))


def test_a_tokenizer_that_changed_beside_the_shards_is_found_before_a_sample_is_served(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", random_documents(30, 15))
    (tmp_path / "shards" / "tokenizer" / "tokenizer.json").write_text("[]")
    with pytest.raises(ShardError, match="not the tokenizer the shards were made with"):
        open_data(recipe_of("mlm", {"shards": str(tmp_path / "shards")}))


def test_a_flipped_byte_is_found_when_the_recipe_says(corpora: dict[str, Path], tmp_path: Path) -> None:
    shards = Path(shutil.copytree(corpora["law"], tmp_path / "shards"))
    raw = bytearray((shards / "train-00000.bin").read_bytes())
    raw[0] ^= 1
    (shards / "train-00000.bin").write_bytes(raw)

    def opened(verify: str) -> Data:
        return open_data(recipe_of("mlm", {"shards": str(shards), "verify": verify}))

    def first_row(data: Data) -> NDArray[np.int32]:
        return data.train.fetch(data.train.corpora[0].order.positions_of(np.zeros(1, dtype=np.int64), 0)).tokens_BL

    with pytest.raises(ShardError, match=r"block 0 [\s\S]*train-00000\.bin"):
        opened("open")
    touched = opened("touch")
    with pytest.raises(ShardError, match=r"block 0 [\s\S]*train-00000\.bin"):
        first_row(touched)
    sound = first_row(open_data(recipe_of("mlm", {"shards": str(corpora["law"])})))
    assert np.count_nonzero(first_row(opened("off")) != sound) == 1


def test_what_packing_wastes_is_told(corpora: dict[str, Path]) -> None:
    told = wasted(open_data(recipe_of("mlm", {"shards": str(corpora["law"]), "packing": "pad"})))
    assert len(told) == 1
    assert "padding" in told[0]
    assert "of its tokens do not fit" in told[0]
    assert wasted(open_data(recipe_of("mlm", {"shards": str(corpora["law"])}))) == []
    for objective in ("mlm", "clm"):  # less text than a sequence is long
        data = open_data(recipe_of(objective, {"shards": str(corpora["law"]), "seq_len": 8192}))
        rows = data.train.fetch(np.arange(data.train.num_samples, dtype=np.int64))
        share = 1 - rows.num_tokens_B.sum() / rows.tokens_BL.size
        assert share > 0.5
        assert wasted(data) == [f"law: {share:.1%} of every batch is padding"]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sentences")
    for seed, name in enumerate(("law", "wiki")):
        held_out = random_documents(8, 30, seed=seed + 10)
        text = random_documents(120, 30, seed=seed)
        write_shards(folder / name, text, held_out, documents_per_shard=40, words=True, sentence_length=6)
    return {name: folder / name for name in ("law", "wiki")}


def pairs_recipe(kind: str, data: dict[str, Any], **changes: Any) -> Recipe:
    objective = {"kind": "mlm", "unit": "word", "sentence_pairs": kind}
    return recipe_of("mlm", data, **{"objective": objective, "model": tiny.PAIR_MODELS[kind], **changes})


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_the_pairs_of_a_step_are_the_same_on_any_ranks_in_any_passes_from_any_start(
    sentences: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    takedown = tmp_path / "takedown.txt"
    takedown.write_text("train.jsonl:3\n")
    text = mixture(sentences, law=0.7, wiki=0.3)
    text["mixture"]["law"]["exclude"] = str(takedown)
    recipe = pairs_recipe(kind, text)
    whole = digests(open_data(recipe), 1, None, 0, 12)
    assert len(set(whole)) == 12
    for world_size, micro_batch in ((2, 4), (3, 16), (8, 3), (1, 1)):
        assert digests(open_data(recipe), world_size, micro_batch, 0, 4) == whole[:4]
        assert digests(open_data(recipe), world_size, micro_batch, 7, 12) == whole[7:]
    assert digests(open_data(pairs_recipe(kind, text, train__seed=2)), 1, None, 0, 1) != whole[:1]


def test_pairs_are_counted_where_they_have_a_label(sentences: dict[str, Path]) -> None:
    recipe = pairs_recipe("nsp", {"shards": str(sentences["law"])}, eval__max_samples=None)
    data = open_data(recipe)
    plan = plan_batch(GLOBAL_BATCH, 8, 2)
    for rank in range(2):
        for batch in step_batches(data, plan, rank, 0, 4):
            labels = np.concatenate([inputs["pair_labels"] for inputs in batch.passes])
            assert batch.num_pairs == np.count_nonzero(labels != IGNORE_INDEX) > 0
            assert set(batch.passes[0]) >= {"input_ids", "labels", "token_type_ids", "pair_labels"}
    counted = sum(
        int(np.count_nonzero(batch.inputs["pair_labels"] != IGNORE_INDEX))
        for rank in range(2)
        for batch in validation_batches(recipe, data, 2, rank)
    )
    loader = data.validation[0]
    told = loader.fetch(np.arange(loader.num_samples, dtype=np.int64)).pair_labels_B
    assert told is not None
    assert counted == np.count_nonzero(told >= 0)  # rows that fill the last round are not counted twice


def test_the_pairs_without_a_label_are_told(sentences: dict[str, Path]) -> None:
    told = wasted(open_data(pairs_recipe("nsp", {"shards": str(sentences["law"])})))
    assert any("of the pairs have no label" in line for line in told)


def test_the_chunks_are_kept_beside_the_shards(sentences: dict[str, Path]) -> None:
    open_data(pairs_recipe("sop", {"shards": str(sentences["wiki"])}))
    kept = {path.name for path in (sentences["wiki"] / ".packing").iterdir()}
    assert {"train-sentences-21.npz", "validation-sentences-21.npz"} <= kept


def test_pairs_of_shards_without_sentences_are_refused(corpora: dict[str, Path]) -> None:
    with pytest.raises(ShardError, match="prepare them again with --sentences"):
        open_data(pairs_recipe("nsp", {"shards": str(corpora["law"])}))


def test_ranks_that_share_a_sequence_have_its_parts(corpora: dict[str, Path]) -> None:
    recipe = recipe_of("clm", {"shards": str(corpora["law"]), "packing": "bestfit"}, eval__max_samples=None)
    data = open_data(recipe)
    whole = [list(step_batches(data, plan_batch(GLOBAL_BATCH, 12, 2), rank, 0, 2)) for rank in range(2)]
    parts = [list(step_batches(data, plan_batch(GLOBAL_BATCH, 12, 6, 3), rank, 0, 2)) for rank in range(6)]
    for step, group in ((step, group) for step in range(2) for group in range(2)):
        together, apart = whole[group][step], [parts[3 * group + part][step] for part in range(3)]
        for number, inputs in enumerate(together.passes):
            cut = [batch.passes[number] for batch in apart]
            for name in ("input_ids", "labels"):
                assert np.array_equal(np.concatenate([one[name] for one in cut], axis=1), inputs[name])
            places = np.concatenate([one["position_ids"] for one in cut], axis=1)
            assert (places == np.arange(recipe.data.seq_len)).all()
            assert not any("attention_mask" in one for one in cut)
        for field in ("num_targets", "num_tokens", "digest"):  # of each sample and token once
            assert sum(getattr(batch, field) for batch in apart) == getattr(together, field)
    one, of_three = (
        sum(
            int(np.count_nonzero(batch.inputs["labels"] != IGNORE_INDEX))
            for rank in range(2 * parts)
            for batch in validation_batches(recipe, data, 2 * parts, rank, parts)
        )
        for parts in (1, 3)
    )
    assert one == of_three > 0
