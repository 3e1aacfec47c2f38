"""`pretrain drill`: hold drills, one after another, and say what came of each."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.drill.bench import Bench
from launcher.drill.drills import DRILLS
from launcher.drill.life import CommandLife, DrillError
from launcher.errors import EXIT_DONE, EXIT_OURS, UsageError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a drill."""

    drill: str
    does: str
    outcome: str
    """`holds`, `fails` or `skipped`."""
    told: str
    seconds: float


def run_drills(
    names: Sequence[str], *, config: str, num_ranks: int, times: int, folder: Path | None, as_json: bool
) -> int:
    """Hold drills and print a line for each.

    Args:
        names: Of drills; `all` for every one.
        config: DeepSpeed JSON.
        num_ranks: Ranks of the runs.
        times: How often `kill-rank` kills.
        folder: Where they leave everything; a temporary one without it, which stays if a drill fails.
        as_json: Print one JSON object a drill.

    Returns:
        The exit code: 1 if a promise did not hold.

    Raises:
        UsageError: There is no drill of a name.
    """
    for name in names:
        if name not in DRILLS and name != "all":
            raise UsageError(f"there is no drill {name!r}", "command line", did_you_mean(name, DRILLS))
    place = folder if folder is not None else Path(tempfile.mkdtemp(prefix="pretrain-drill-"))
    outcomes = []
    for name in DRILLS if "all" in names else names:
        outcome = _hold(name, place, config, num_ranks, times)
        outcomes.append(outcome)
        print(json.dumps(asdict(outcome), ensure_ascii=False) if as_json else _line(outcome), flush=True)
    failed = any(outcome.outcome == "fails" for outcome in outcomes)
    if not as_json:
        print(f"everything is in {place}" if folder is not None or failed else f"delete {place} when you have seen it")
    return EXIT_OURS if failed else EXIT_DONE


def _hold(name: str, place: Path, config: str, num_ranks: int, times: int) -> Outcome:
    def start(words: Sequence[str], env: Mapping[str, str], out: Path) -> CommandLife:
        lives.append(CommandLife(words, env, out, num_ranks))
        return lives[-1]

    lives: list[CommandLife] = []
    began, does, lack = time.monotonic(), DRILLS[name].does, DRILLS[name].needs()
    if lack:
        return Outcome(drill=name, does=does, outcome="skipped", told=lack, seconds=0.0)
    try:
        told, outcome = DRILLS[name].run(Bench(name, place, start, config, num_ranks, times)), "holds"
    except DrillError as error:
        told, outcome = str(error), "fails"
    finally:
        for life in lives:
            life.end_all()
    return Outcome(drill=name, does=does, outcome=outcome, told=told, seconds=round(time.monotonic() - began, 1))


def _line(outcome: Outcome) -> str:
    return f"{outcome.outcome:<8} {outcome.drill:<22} {outcome.does}: {outcome.told}  ({outcome.seconds:.0f} s)"


def print_list() -> None:
    """`pretrain drill --list`."""
    for name, drill in DRILLS.items():
        lack = drill.needs()
        print(f"{name:<22} {drill.does}" + (f"  [not here: {lack}]" if lack else ""))
