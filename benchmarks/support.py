"""What every benchmark here needs: timing, the machine's line, texts, arguments and output.

    python -m benchmarks.NAME [--corpus FILE.jsonl] [--rounds N] [--json]      # from the checkout

A benchmark measures a named peer beside ours, the two in turn (`benchmarks.rounds`), so that a busy machine slows both
and the ratio stands:

    options = parser(__doc__).parse_args()                  # add arguments of its own between the two
    texts = read_texts(options.corpus, limit=1000)
    result = ratio("encode", ours, "peer 1.2, its fast form", peer, options.rounds, ours_calls=20, bar=10)
    show("encoding", [result], as_json=options.json, packages=("numpy", "tokenizers"), settings={"texts": len(texts)})
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Protocol

TEXT_FIELDS = ("text", "completion", "content")

Call = Callable[[], object]


class Result(Protocol):
    """What `show` prints: a dataclass with a line for people."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def line(self) -> str:
        """For people."""
        ...


@dataclass(frozen=True, slots=True)
class Ratio:
    """One thing measured against a peer; times are medians over the rounds, of one call, in seconds."""

    name: str
    peer: str
    """Which program in which form."""
    rounds: int
    ours_s: float
    peer_s: float
    ours_cpu_s: float
    """Process time of user and system, all threads and finished child processes together."""
    peer_cpu_s: float
    ratio: float
    """Peer's time over ours: the median of the rounds' ratios, above 1 where we are faster."""
    ratio_min: float
    ratio_max: float
    bar: float | None
    """The ratio to reach."""

    @property
    def line(self) -> str:
        """For people."""
        bar = "" if self.bar is None else f"  bar {self.bar:g}: {'met' if self.ratio >= self.bar else 'MISSED'}"
        return (
            f"{self.name}: {self.ratio:.3g} times as fast as {self.peer}"
            f" ({self.ratio_min:.3g} to {self.ratio_max:.3g} over {self.rounds} rounds){bar}\n"
            f"  ours {milliseconds(self.ours_s)} (process {milliseconds(self.ours_cpu_s)}),"
            f" peer {milliseconds(self.peer_s)} (process {milliseconds(self.peer_cpu_s)})"
        )


def timed(call: Call, num_calls: int = 1) -> tuple[float, float]:
    """Elapsed and process seconds of one call, the mean of `num_calls` in a row."""
    cpu, start = _process_s(), time.perf_counter()
    for _ in range(num_calls):
        call()
    elapsed_s = time.perf_counter() - start
    return elapsed_s / num_calls, (_process_s() - cpu) / num_calls


def parser(description: str | None, *, rounds: int = 30) -> argparse.ArgumentParser:
    """A parser with `--corpus`, `--rounds` and `--json`; the description is the benchmark's docstring."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument(
        "--corpus", type=_file, metavar="FILE", help="JSONL with a text in each line; made up if left out"
    )
    made.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"timings of each (default {rounds})")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def read_texts(corpus: Path | None, limit: int) -> list[str]:
    """The first texts of a JSONL file, or as many made up of Chinese and Latin words.

    Args:
        corpus: JSON objects, one a line, each with one of TEXT_FIELDS; None for made-up texts, the same every time.
        limit: Texts at most.
    """
    if corpus is None:
        return _made_up(limit)
    texts = []
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            texts.append(next(record[field] for field in TEXT_FIELDS if field in record))
            if len(texts) == limit:
                break
    return texts


def machine(packages: Sequence[str] = ()) -> dict[str, object]:
    """What a number depends on: processor, cores this process may use, memory, load, and versions of `packages`."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
    }


def show(
    benchmark: str,
    results: Sequence[Result],
    *,
    as_json: bool,
    packages: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
) -> None:
    """Print the results, the machine and the settings: for people, or as one JSON object."""
    about = machine(packages)
    if as_json:
        rows = [asdict(result) for result in results]
        report = {"benchmark": benchmark, "machine": about, "settings": dict(settings or {}), "results": rows}
        print(json.dumps(report, ensure_ascii=False, indent=2))
        return
    versions = about.pop("versions")
    assert isinstance(versions, dict)
    parts = (f"{about['processor']}", f"{about['cores']} cores", f"{about['memory_gib']} GiB", f"{about['system']}")
    print(", ".join(parts), ", ".join(f"{name} {version}" for name, version in versions.items()), sep="; ")
    print(", ".join([*(f"{name} {value}" for name, value in (settings or {}).items()), f"load {about['load_1min']}"]))
    for result in results:
        print(result.line)


def milliseconds(seconds: float) -> str:
    """Three digits in milliseconds: 0.00015 → `0.15 ms`."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds * 1e3:.0f} ms"


def _file(word: str) -> Path:
    if not Path(word).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {word}; benchmarks.make_corpus makes a corpus")
    return Path(word)


def _process_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _processor() -> str:
    """The processor's name; Linux tells it in /proc alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _made_up(num_texts: int) -> list[str]:
    """Sentences of 2-character Chinese words, a Latin word or a number here and there; about 500 characters a text."""
    rng = random.Random(0)
    words = ["".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(2)) for _ in range(3000)]
    others = ["the", "model", "Paris", "tokenization", "1998", "3.14", "2020"]
    texts = []
    for _ in range(num_texts):
        sentences = []
        for _ in range(20):
            drawn = rng.choices(words, k=rng.randrange(6, 16))
            sentences.append("".join(drawn) + (f" {rng.choice(others)} " if rng.random() < 0.3 else "") + "。")
        texts.append("".join(sentences))
    return texts
