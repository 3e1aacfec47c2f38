"""What the runs of a scaling test tell, as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from launcher.errors import ScaleError
from launcher.scale.options import LEAST_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One size."""

    size: int
    """As asked for: nodes on Slurm, ranks on one machine."""
    hosts: int
    ranks: int
    global_batch: int
    steps: int
    """Timed, after the warm-up."""
    step_s_median: float
    step_s_p5: float
    step_s_p95: float
    tokens_per_s: float
    """Tokens of a step over its time, median."""
    tokens_per_s_per_rank: float
    efficiency: float
    """Tokens a second and rank, against those of the smallest size."""
    data_wait_share: float
    """Of the step's time, median."""
    collectives_share: float
    """Of the step's time, mean of all ranks; in steps of their own, which wait for each collective."""
    slowest_host: str
    """The one whose ranks wait least for the others."""
    slowest_host_behind: float
    """How much longer it computes than the median host."""


def row_of(size: int, global_batch: int, warm_up: int, lines: Sequence[dict[str, Any]]) -> Row:
    """Read one run; its efficiency is 1 until `against_smallest`.

    Args:
        size: As asked for.
        global_batch: Sequences of a step.
        warm_up: Steps to drop.
        lines: Of its metrics.jsonl.

    Raises:
        ScaleError: It has too few steps, or does not tell of its collectives.
    """
    told = next((line for line in lines if line.get("event") == "collectives"), None)
    if told is None:
        raise ScaleError(f"the run of size {size} did not end", "metrics.jsonl", "see its log")
    timed = [line for line in lines if "step_s" in line and "event" not in line]
    timed = [line for line in timed if warm_up < line["step"] <= told["step"] - told["steps"]]
    if len(timed) < LEAST_STEPS:
        raise ScaleError(f"the run of size {size} has {len(timed)} timed steps", "metrics.jsonl", f"take {LEAST_STEPS}")
    step_s = np.array([line["step_s"] for line in timed])
    tokens_per_s = median(line["tokens_per_s"] for line in timed)
    ranks = told["ranks"]
    computes = _computing_s(ranks)
    slowest = max(computes, key=lambda host: computes[host])
    return Row(
        size=size,
        hosts=len(computes),
        ranks=len(ranks),
        global_batch=global_batch,
        steps=len(timed),
        step_s_median=float(np.median(step_s)),
        step_s_p5=float(np.percentile(step_s, 5)),
        step_s_p95=float(np.percentile(step_s, 95)),
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_rank=tokens_per_s / len(ranks),
        efficiency=1.0,
        data_wait_share=median(line["data_wait_s"] / line["step_s"] for line in timed),
        collectives_share=sum(rank["collectives_s"] for rank in ranks) / sum(rank["step_s"] for rank in ranks),
        slowest_host=slowest,
        slowest_host_behind=computes[slowest] / median(computes.values()) - 1.0,
    )


def _computing_s(ranks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By host, what its slowest rank spends of a step outside of collectives."""
    by_host: dict[str, float] = {}
    for rank in ranks:
        own = rank["step_s"] - rank["collectives_s"]
        by_host[rank["host"]] = max(by_host.get(rank["host"], 0.0), own)
    return by_host


def against_smallest(rows: Sequence[Row]) -> list[Row]:
    """The rows by size, with their efficiency."""
    ordered = sorted(rows, key=lambda row: row.size)
    first = ordered[0].tokens_per_s_per_rank
    return [Row(**{**asdict(row), "efficiency": row.tokens_per_s_per_rank / first}) for row in ordered]


def as_json(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """One object."""
    return json.dumps({**about, "rows": [asdict(row) for row in rows]}, ensure_ascii=False, indent=2) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """A line a size."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """A table to paste."""
    head = ["size", "hosts", "ranks", "batch", "steps", "step s (p5, p95)", "tokens/s", "a rank", "efficiency"]
    head += ["data wait", "collectives", "slowest host"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        behind = f"{row.slowest_host} (+{row.slowest_host_behind:.0%})" if row.hosts > 1 else "-"
        cells = [str(row.size), str(row.hosts), str(row.ranks), str(row.global_batch), str(row.steps)]
        cells += [f"{row.step_s_median:.4f} ({row.step_s_p5:.4f}, {row.step_s_p95:.4f})"]
        cells += [f"{row.tokens_per_s:,.0f}", f"{row.tokens_per_s_per_rank:,.0f}", f"{row.efficiency:.1%}"]
        cells += [f"{row.data_wait_share:.1%}", f"{row.collectives_share:.1%}", behind]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_all(folder: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write table.json, table.csv and table.md."""
    (folder / "table.json").write_text(as_json(rows, about), encoding="utf-8")
    (folder / "table.csv").write_text(as_csv(rows), encoding="utf-8")
    (folder / "table.md").write_text(as_markdown(rows), encoding="utf-8")
