"""The ranks that save together, and what they tell each other on the way.

They have a group of their own (gloo, whatever training uses): a save in the background exchanges a few bytes while the
steps' own collectives go on, and neither can take the other's messages.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed
from safetensors import SafetensorError

from launcher.engine.process import exchange
from launcher.errors import RequeueError

PATIENCE = timedelta(hours=2)
"""How long one rank waits for the slowest disk of the others; assumption."""


class SaveError(RequeueError):
    """A checkpoint could not be written; the ones before it are as they were, and a restart goes on from them."""


class SpaceError(SaveError):
    """There is not enough room for a checkpoint."""


class CopyError(SaveError):
    """The state could not be copied to memory before training changed it: it is too late for another try."""


class LostRankError(SaveError):
    """Another rank is gone, so that nothing can be agreed on."""


class Ranks:
    """This process among those that save or load together; made by all of them at the same moment."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in the order of ranks.

        Raises:
            LostRankError: Another rank does not answer.
        """
        try:
            return exchange(value, self._group, "cpu")
        except RuntimeError as error:
            raise LostRankError(
                f"the other ranks cannot be asked: {error}", f"rank {self.rank}", "run the same command again"
            ) from None

    def together(self, act: Callable[[], Any] | None, folder: Path) -> list[Any]:
        """Do a part of a save and learn whether every rank did its own.

        Args:
            act: This rank's part, which may return JSON; None for nothing.
            folder: Where, for the message.

        Returns:
            What the ranks' parts returned, in the order of ranks.

        Raises:
            SaveError: On every rank, when any could not.
        """
        problem: tuple[str, str] | None = None
        done: Any = None
        try:
            if act is not None:
                done = act()
        except SaveError as error:
            problem = (type(error).__name__, error.what)
        except (OSError, SafetensorError) as error:
            problem = (SaveError.__name__, f"rank {self.rank}: {error}")
        told = self.exchange([problem, done])
        problems = [theirs for theirs, _ in told if theirs]
        if not problems:
            return [theirs for _, theirs in told]
        names = {name for name, _ in problems}
        kind = next((kind for kind in (CopyError, SpaceError) if kind.__name__ in names), SaveError)
        mend = "set checkpoint.asynchronous=false" if kind is CopyError else "make room or mend the file system"
        raise kind(
            "the checkpoint could not be written: " + "; ".join(what for _, what in problems),
            str(folder),
            f"{mend}; the same command goes on from the checkpoint before",
        )
