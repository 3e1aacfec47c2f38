"""What slurm/pretrain.sh asks on the first node of a job before and after each of its lives.

`python -m launcher.life --job ID --ranks N -- WORDS OF launcher/train.py` prints a port that is free there and the
step of the newest checkpoint (0 for none). It starts in half a second, so that a mistake in the recipe is told once,
before N ranks are started.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launcher.checkpoint.folder import complete_steps
from launcher.cluster.hosts import free_port
from launcher.cluster.rank import FIRST_PORT, NUM_PORTS
from launcher.config.command_line import parse
from launcher.config.deepspeed import load_ds_config
from launcher.config.loading import load_recipe
from launcher.errors import EXIT_DONE, LauncherError, RecipeError, RequeueError
from launcher.shards import faults


def main(arguments: Sequence[str]) -> int:
    """Print port and step."""
    parser = argparse.ArgumentParser(prog="python -m launcher.life", allow_abbrev=False)
    parser.add_argument("--job", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args(arguments)
    try:
        words = parse(options.words)
        recipe = load_recipe(words.recipe, words.overrides).recipe
        load_ds_config(words.ds_config)
        recipe.cut_batch(options.ranks)
        steps = complete_steps(recipe.run_folder / "checkpoints")
        print(free_port(FIRST_PORT + options.job % NUM_PORTS), steps[-1] if steps else 0)
    except (LauncherError, OSError) as error:
        told = error if isinstance(error, LauncherError) else _of_file_system(error)
        print(told, file=sys.stderr)
        return told.exit_code
    return EXIT_DONE


def _of_file_system(error: OSError) -> LauncherError:
    where = str(error.filename or "")
    if faults.is_of_place(error):
        return RequeueError(f"the file system failed: {error.strerror}", where, "the next life looks again")
    return RecipeError(
        f"the run's folder cannot be looked into: {error.strerror}",
        where,
        "name a place that is open to you (runs=FOLDER), or another run (name=NAME)",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
