"""Global batch digests over every cut of a run: world sizes, micro batches, resumes, longer runs, more epochs.

    python -m benchmarks.digests [--corpus FILE.jsonl] [--peer-python PATH] [--json]

The digest of a step covers every array the model is given of every sample, masks and noise among them, and each
sample's position. It is worked out here as training does, rank by rank in one process, for every objective, every way
to pack, and a mixture of two corpora whose weights change on the way; all cuts of a run must give the same ones, and
another seed must give none of them.

Beside it, how many of the first samples of one epoch keep their places when the run is extended to three: here, and in
the dataset of megatron-core, which keeps its order at other world sizes. (mosaicml-streaming keeps global batches at
worlds of 2, 4 and 8; measured, not here.)
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.rounds import Peer, Value, add_peer_python, installed
from benchmarks.support import parser, read_texts, show
from launcher.config.batch import plan_batch
from launcher.config.recipe import Recipe
from launcher.feed.batches import step_batches
from launcher.feed.data import Data, open_data
from launcher.prepare.build import build_shards
from launcher.prepare.readers import ReadOptions
from launcher.prepare.request import BuildRequest
from launcher.prepare.tokenizer_training import train_tokenizer
from launcher.shards.reader import open_split

GLOBAL_BATCH, SEQ_LEN, NUM_STEPS = 24, 64, 18
WORLDS = (1, 2, 3, 4, 8)
MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 12, 24, None)
NUM_RESUMES = 12
NUM_TEXTS = 240
EPOCHS = 3
NUM_FIRST = 200
PACKINGS = ("concat", "bestfit", "pad")
FAMILIES = {"mlm": "bert", "clm": "gpt2", "span": "t5"}
MODULUS = 1 << 64


def main() -> None:
    """Build, cut in all ways, compare."""
    made = parser(__doc__)
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the resumes (default 0)")
    add_peer_python(made)
    options = made.parse_args()
    rng = random.Random(options.seed)
    results = []
    with tempfile.TemporaryDirectory() as name:
        shards = build_two(Path(name), read_texts(options.corpus, NUM_TEXTS))
        for kind, packing, mixed in itertools.product(FAMILIES, PACKINGS, (False, True)):
            equal, compared = compare(recipe_of(kind, packing, shards, mixed), rng)
            title = f"{kind}, {packing}, {'a mixture that changes' if mixed else 'one corpus'}: equal of {compared}"
            results.append(Value(title, equal, "steps", compared, at_most=False))
        results.append(Value("with another seed, equal", with_another_seed(shards), "steps", 0))
        results += kept_when_extended(shards[0], options.peer_python)
    settings = {"worlds": WORLDS, "global_batch": GLOBAL_BATCH, "steps": NUM_STEPS, "resumes": NUM_RESUMES}
    show("digests", results, as_json=options.json, packages=("numpy", "xxhash"), settings=settings)


def compare(recipe: Recipe, rng: random.Random) -> tuple[int, int]:
    """Steps whose digest is that of the plain run (one rank, one pass), and steps compared."""
    data = open_data(recipe)
    # The longest run first: its beginning must be every shorter one's.
    num_epochs = EPOCHS * max(1, -(-data.train.num_samples // GLOBAL_BATCH))
    last = max(NUM_STEPS, num_epochs)
    plain = list(global_digests(data, 1, None, 0, last))
    equal = compared = 0

    def check(found: Iterator[int], first: int) -> None:
        nonlocal equal, compared
        for step, digest in enumerate(found, first):
            equal += digest == plain[step]
            compared += 1

    for world_size, micro_batch in itertools.product(WORLDS, MICRO_BATCHES):
        if GLOBAL_BATCH % (world_size * (micro_batch or 1)) == 0:
            check(global_digests(data, world_size, micro_batch, 0, NUM_STEPS), 0)
    for _ in range(NUM_RESUMES):  # another world each time, its data opened anew, as far as the end of some epoch
        first = rng.randrange(last)
        again = open_data(recipe)
        assert again.train.fingerprint_at(first * GLOBAL_BATCH) == data.train.fingerprint_at(first * GLOBAL_BATCH)
        check(global_digests(again, rng.choice(WORLDS), 1, first, min(last, first + NUM_STEPS)), first)
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"num_steps": 10 * last})})
    check(global_digests(open_data(longer), 2, None, 0, last), 0)
    return equal, compared


def with_another_seed(shards: tuple[Path, Path]) -> int:
    """Steps whose digest another seed leaves, and steps of one run with one digest: the comparison can tell."""
    recipe = recipe_of("mlm", "concat", shards, mixed=False)
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": recipe.train.seed + 1})})
    one, two = (list(global_digests(open_data(each), 1, None, 0, NUM_STEPS)) for each in (recipe, other))
    return sum(a == b for a, b in zip(one, two, strict=True)) + NUM_STEPS - len(set(one))


def kept_when_extended(shards: Path, python: Path) -> list[Value]:
    """Of the first samples of one epoch, those that a run of three epochs has as well: ours and megatron-core's."""
    split = open_split(shards, "train")
    num_samples = split.num_tokens // SEQ_LEN - 2
    count = min(NUM_FIRST, num_samples)
    title = f"of the first {count} samples of one epoch, the same in a run of {EPOCHS}"

    def ours(num_steps: int) -> list[bytes]:
        recipe = recipe_of("clm", "concat", (shards, shards), mixed=False)
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"num_steps": num_steps})})
        rows = open_data(recipe).train.fetch(np.arange(count, dtype=np.int64)).tokens_BL
        return [row.tobytes() for row in rows]

    steps = -(-num_samples // GLOBAL_BATCH)
    results = [Value(f"{title}: ours", _equal(ours(steps), ours(EPOCHS * steps)), "", count, at_most=False)]
    if installed(python, "megatron-core"):
        with Peer(python, "benchmarks.peers.datasets", "megatron") as peer:
            found = []
            for epochs in (1, EPOCHS):
                prefix = str(shards / "train-00000")
                peer.ask("open", prefix=prefix, length=SEQ_LEN, num_rows=1, num_samples=epochs * num_samples)
                found.append(peer.ask("first", count=count)["sums"])
            results.append(Value(f"{title}: {peer.about['name']}'s dataset", _equal(*found), ""))
    return results


def _equal(one: Sequence[object], two: Sequence[object]) -> int:
    return sum(a == b for a, b in zip(one, two, strict=True))


def global_digests(data: Data, world_size: int, micro_batch: int | None, first: int, last: int) -> Iterator[int]:
    """Of each step, the digests of all ranks together, as the run's all-reduce adds them."""
    plan = plan_batch(GLOBAL_BATCH, micro_batch, world_size)
    ranks = [step_batches(data, plan, rank, first, last) for rank in range(world_size)]
    for batches in zip(*ranks, strict=True):
        yield sum(batch.digest for batch in batches) % MODULUS


def build_two(folder: Path, texts: list[str]) -> tuple[Path, Path]:
    """Two folders of shards, one tokenizer; documents of many lengths, some longer than a row."""
    rng = random.Random(0)
    pieces = [text[: rng.randrange(20, 400)] for text in texts]
    train_tokenizer(pieces, "wordpiece", 4000, folder / "tokenizer")
    made = []
    for name, part in (("one", pieces[::2]), ("two", pieces[1::2])):
        corpus = folder / f"{name}.jsonl"
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in part)
        corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
        request = BuildRequest(
            corpus=(str(corpus),),
            tokenizer=folder / "tokenizer",
            out=folder / name,
            read=ReadOptions(text_field="text"),
            encoder="tokenizers",
            workers=1,
        )
        build_shards(request, Console(quiet=True))
        made.append(folder / name)
    return made[0], made[1]


def recipe_of(kind: str, packing: str, shards: tuple[Path, Path], mixed: bool) -> Recipe:
    """A recipe that only its data matters of."""
    data: dict[str, Any] = {"seq_len": SEQ_LEN, "packing": packing}
    if mixed:
        data["mixture"] = {
            "one": {"shards": shards[0], "weight": 0.7},
            "two": {"shards": shards[1], "weight": 0.3},
        }
        data["changes"] = [{"step": 7, "weights": {"one": 0.25}}, {"step": 13, "weights": {"two": 0.0}}]
    else:
        data["shards"] = shards[0]
    return Recipe.model_validate(
        {
            "name": "digests",
            "data": data,
            "objective": {"kind": kind},
            "model": {"family": FAMILIES[kind]},
            "batch": {"global_batch": GLOBAL_BATCH},
            "optim": {"lr": 1.0e-4},
            "train": {"num_steps": NUM_STEPS, "seed": 5},
        }
    )


if __name__ == "__main__":
    main()
