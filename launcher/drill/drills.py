"""The drills: what is done to a run, and what must come of it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.drill import sabotage
from launcher.drill.bench import Bench
from launcher.drill.disk import SmallDisk
from launcher.drill.life import CommandLife, DrillError, send, wait_for_nobody, wait_until
from launcher.errors import EXIT_REQUEUE, EXIT_USER

GONE_WITHIN_S = 60.0
"""After the launcher's end no process of the run is left. DeepSpeed's node launcher gives each rank 30 s."""


@dataclass(frozen=True, slots=True)
class Drill:
    """One way to break a run."""

    does: str
    """What is done, for its reader."""
    run: Callable[[Bench], str]
    """Does it and checks what comes of it; returns the outcome in a few words."""
    needs: Callable[[], str] = field(default=lambda: "")
    """What is missing here to hold it; empty if nothing."""


def kill_rank(bench: Bench) -> str:
    """SIGKILL to a random rank at a random moment, `bench.times` times in a row."""
    rng = random.Random(bench.seed)
    for _ in range(bench.times):
        life = bench.start()
        # Anywhere from the meeting of the ranks to the last steps.
        if rng.random() < 0.2:
            bench.come_to_ranks(life)
        else:
            bench.come_to(min(bench.saved_step() + rng.randrange(1, 120), 190), life)
        send(life.rank(rng.randrange(bench.num_ranks)), signal.SIGKILL)
        life.wait()
        wait_for_nobody(life, GONE_WITHIN_S)
        bench.expect("Traceback" not in life.told(), f"it ended with a traceback:\n{life.told()[-3000:]}")
    bench.finish()
    return f"killed {bench.times} times: same losses"


def kill_launcher(bench: Bench) -> str:
    """SIGKILL to the `deepspeed` command: nobody tells the ranks."""
    life = bench.start()
    bench.come_to(60, life)
    send(life.launcher(), signal.SIGKILL)
    life.wait()
    wait_for_nobody(life, GONE_WITHIN_S)
    step = bench.last_step()
    bench.expect(bench.saved_step() == step, f"the ranks saved step {bench.saved_step()}, their last was {step}")
    bench.expect_clear_end(life, f"stopped after step {step} as asked")
    bench.finish()
    return "the ranks noticed, finished the same step, saved; same losses"


def kill_node_launcher(bench: Bench) -> str:
    """SIGKILL to DeepSpeed's node launcher, after which `deepspeed` ends with 0."""
    life = bench.start()
    if not isinstance(life, CommandLife):
        raise DrillError("only the deepspeed command has a node launcher")
    bench.come_to(60, life)
    send(life.node_launcher(), signal.SIGKILL)
    life.wait()
    wait_for_nobody(life, GONE_WITHIN_S)
    bench.expect(not bench.is_complete(), "the run is marked complete, though it is not")
    bench.expect(bench.saved_step() == bench.last_step(), "the last step was not saved")
    bench.finish()
    return "the ranks noticed, finished the same step, saved; not marked complete; same losses"


def _signalled(number: signal.Signals, rank: int | None) -> Callable[[Bench], str]:
    def run(bench: Bench) -> str:
        life = bench.start()
        bench.come_to(60, life)
        send(life.launcher() if rank is None else life.rank(rank), number)
        code = life.wait()
        wait_for_nobody(life, GONE_WITHIN_S)
        step = bench.last_step()
        bench.expect(bench.saved_step() == step, f"step {bench.saved_step()} was saved, the last was {step}")
        bench.expect_clear_end(life, f"stopped after step {step} as asked")
        if rank is not None:
            bench.expect(code == EXIT_REQUEUE, f"it ended with {code}, not 75")
        bench.finish()
        return f"all ranks finished step {step}, saved, ended; same losses"

    return run


def stop_rank(bench: Bench) -> str:
    """SIGSTOP to a rank: it neither dies nor gets on."""
    life = bench.start(hang_floor_s=5.0)
    bench.come_to(60, life)
    send(life.rank(1), signal.SIGSTOP)
    life.wait()
    wait_for_nobody(life, GONE_WITHIN_S)
    stacks = sorted(path.name for path in (bench.run_folder / "logs").glob("stacks-rank-*.txt"))
    bench.expect("stacks-rank-00000.txt" in stacks, "no stacks were written")
    bench.expect_clear_end(life, "stopped")
    bench.finish()
    return "found, stacks written, the stopped process ended with the rest; same losses"


def _killed_in_save(phase: str, rank: int, save: int = 2) -> Callable[[Bench], str]:
    def run(bench: Bench) -> str:
        life = bench.start(env=sabotage.order("save", phase=phase, save=save, rank=rank))
        code = life.wait()
        wait_for_nobody(life, GONE_WITHIN_S)
        bench.expect(code != 0, "the rank was not killed")
        saved = bench.saved_step()
        whole = (40 * (save - 1), 40 * save)
        bench.expect(saved in whole, f"the newest complete checkpoint is of step {saved}")
        bench.finish()
        return f"step {saved} was there whole; same losses"

    return run


def fill_disk(bench: Bench) -> str:
    """The run's folder on a disk that is full before the run ends; then there is room again."""
    with SmallDisk(bench.folder / "small") as disk:
        bench.move_to(disk.path)
        life = bench.start()
        wait_until(lambda: bench.saved_step() >= 40, life, "the first checkpoint")
        disk.fill()
        life.wait()
        wait_for_nobody(life, GONE_WITHIN_S)
        bench.expect_clear_end(life, "the checkpoint could not be written")
        bench.expect(bench.saved_step() >= 40, "the checkpoint before is gone")
        again = bench.start(name="full")
        code = again.wait()
        bench.expect(code == EXIT_REQUEUE, f"started again on the full disk it ended with {code}, not 75")
        bench.expect_clear_end(again, "No space left on device")
        disk.empty()
        bench.finish()
    return "told, the checkpoint before stood; with room again: same losses"


def _damaged_checkpoint(damage: Callable[[Path], None]) -> Callable[[Bench], str]:
    def run(bench: Bench) -> str:
        life = bench.start()
        wait_until(lambda: bench.saved_step() >= 80, life, "the second checkpoint")
        send(life.rank(0), signal.SIGTERM)
        life.wait()
        wait_for_nobody(life, GONE_WITHIN_S)
        step = bench.saved_step()
        newest = bench.checkpoint(step)
        damage(max(newest.glob("rank-*.safetensors"), key=lambda path: path.stat().st_size))
        again = bench.finish()
        bench.expect(f"the checkpoint of step {step} is damaged" in again.told(), "nothing was said of the damage")
        return "told what is damaged, went on from the one before; same losses"

    return run


def truncate(path: Path) -> None:
    """Cut the last bytes off a file."""
    os.truncate(path, path.stat().st_size - 7)


def flip(path: Path, at: int | None = None) -> None:
    """Change one bit in the middle of a file."""
    with path.open("r+b") as file:
        at = path.stat().st_size // 2 if at is None else at
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def corrupt_shard(bench: Bench) -> str:
    """One bit of the token file is another."""
    shards = bench.own_shards()
    data = next(shards.glob("train*.bin"))
    flip(data)
    life = bench.start()
    code = life.wait()
    wait_for_nobody(life, GONE_WITHIN_S)
    bench.expect(code == EXIT_USER, f"it ended with {code}, not 2")
    bench.expect_clear_end(life, "")
    bench.expect("ShardError" in life.told() and data.name in life.told(), "file and block were not named")
    flip(data)
    bench.finish()
    return "file and block named, no token of it trained on; mended: same losses"


def cut_shard(bench: Bench) -> str:
    """The token file is cut short while the ranks have it mapped."""
    shards = bench.own_shards()
    data = next(shards.glob("train*.bin"))
    whole = data.read_bytes()
    life = bench.start()
    bench.come_to(60, life)
    os.truncate(data, 0)
    code = life.wait()
    wait_for_nobody(life, GONE_WITHIN_S)
    bench.expect(code == EXIT_REQUEUE, f"it ended with {code}, not 75")
    bench.expect_clear_end(life, f"can no longer reach {data.resolve()}: it was cut short")
    data.write_bytes(whole)
    bench.finish()
    return "the file named, all ranks ended; mended: same losses"


def lose_number(bench: Bench) -> str:
    """The loss of one rank is no number in one step."""
    life = bench.start(env=sabotage.order("nan", rank=1, step=50))
    code = life.wait()
    wait_for_nobody(life, GONE_WITHIN_S)
    bench.expect(code == 0, f"it ended with {code}")
    left_out = [event for event in bench.events() if event.get("event") == "left_out"]
    bench.expect([event["step"] for event in left_out] == [50], f"left out were {left_out}")
    bench.expect_steps(same_losses_before=50)
    digest = left_out[0]["batch_digest"]
    return f"its update was left out, told with the batch's digest ({digest}); every sample once"


def slow_rank(bench: Bench) -> str:
    """One rank takes longer for each step than the others."""
    life = bench.start(env=sabotage.order("slow", rank=1, seconds=0.1), pace_every_steps=20)
    code = life.wait()
    wait_for_nobody(life, GONE_WITHIN_S)
    bench.expect(code == 0, f"it ended with {code}")
    slow = [event for event in bench.events() if event.get("event") == "slow_rank"]
    bench.expect(bool(slow) and all(event["rank"] == 1 for event in slow), f"told were {slow}")
    bench.expect_steps()
    return f"rank 1 named, with its host, {len(slow)} times; same losses"


def jump_clock(bench: Bench) -> str:
    """The clock of one rank goes on by a day in the middle of the run, and later back by two."""
    file = bench.folder / "clock"
    file.write_text("+0")
    life = bench.start(env=sabotage.order("clock", rank=1, library=faketime_library(), file=str(file)))
    for step, offset in ((40, "+1d"), (80, "-1d")):
        bench.come_to(step, life)
        file.write_text(offset)
    faked = b"LD_PRELOAD=" in Path(f"/proc/{life.rank(1)}/environ").read_bytes()
    bench.expect(faked, "the rank does not run under libfaketime")
    code = life.wait()
    wait_for_nobody(life, GONE_WITHIN_S)
    bench.expect(code == 0, f"it ended with {code}")
    bench.expect_steps()
    return "nothing happened: same losses"


def second_job(bench: Bench) -> str:
    """The same command once more while the first is at work."""
    first = bench.start()
    bench.come_to_lock(first)  # at once, since the run is a matter of seconds
    second = bench.start(name="second")
    code = second.wait()
    wait_for_nobody(second, GONE_WITHIN_S)
    bench.expect(code == EXIT_USER, f"the second ended with {code}, not 2")
    bench.expect("RunInUseError" in second.told(), "the second was not told why")
    bench.expect(first.wait() == 0, "the first did not end well")
    bench.expect_steps()
    return "the second refused, told who is at work; the first: same losses"


def faketime_library() -> str:
    """Of libfaketime; empty where there is none."""
    folders = [Path(name) for name in ("/usr/lib", "/usr/lib64", "/usr/local/lib")]
    found = [path for folder in folders for path in folder.rglob("libfaketime.so.1")]
    return str(found[0]) if found else ""


def _needs_root() -> str:
    return "" if os.geteuid() == 0 else "mounting a small disk needs root"


def _needs_faketime() -> str:
    return "" if faketime_library() else "libfaketime is not installed (apt-get install faketime)"


DRILLS: Mapping[str, Drill] = {
    "kill-rank": Drill("kill -9 of a rank at a random moment", kill_rank),
    "kill-launcher": Drill("kill -9 of the deepspeed command", kill_launcher),
    "kill-node-launcher": Drill("kill -9 of DeepSpeed's node launcher", kill_node_launcher),
    "sigterm": Drill("SIGTERM to the deepspeed command, which dies of it", _signalled(signal.SIGTERM, None)),
    "sigterm-rank": Drill("SIGTERM to one rank", _signalled(signal.SIGTERM, 0)),
    "sigusr1": Drill("SIGUSR1 to one rank", _signalled(signal.SIGUSR1, 1)),
    "stop-rank": Drill("SIGSTOP of a rank: a hang", stop_rank),
    "kill-in-save-writing": Drill("kill -9 of a rank as it writes its part", _killed_in_save("writing", 1)),
    "kill-in-save-manifest": Drill("kill -9 of rank 0 before the manifest", _killed_in_save("manifest", 0)),
    "kill-in-save-rename": Drill("kill -9 of rank 0 before a save gets its name", _killed_in_save("rename", 0)),
    "kill-in-save-tidying": Drill(
        "kill -9 of rank 0 as it deletes an older one", _killed_in_save("tidying", 0, save=4)
    ),
    "fill-disk": Drill("a disk that is full", fill_disk, _needs_root),
    "truncate-checkpoint": Drill("the newest checkpoint cut short", _damaged_checkpoint(truncate)),
    "flip-checkpoint": Drill("a bit of the newest checkpoint flipped", _damaged_checkpoint(flip)),
    "delete-checkpoint": Drill("a file of the newest checkpoint deleted", _damaged_checkpoint(Path.unlink)),
    "corrupt-shard": Drill("a bit of the token file flipped", corrupt_shard),
    "cut-shard": Drill("the token file cut short while it is read", cut_shard),
    "nan": Drill("a loss that is no number on one rank", lose_number),
    "slow-rank": Drill("a rank that takes longer", slow_rank),
    "clock-jump": Drill("a rank's clock a day on, then a day back", jump_clock, _needs_faketime),
    "two-jobs": Drill("two jobs in one folder", second_job),
}
