"""What a checkpoint must remember of the data: one integer, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import CheckpointError

VERSION = 1
_DAMAGED = "the checkpoint is damaged: resume from an earlier one"


@dataclass(frozen=True)
class Cursor:
    """How far a run has come in its data."""

    position: int
    """Samples consumed by all ranks together: the next step starts here."""
    fingerprint: str
    """`Loader.fingerprint` of the data and order that the position counts in."""

    def to_dict(self) -> dict[str, int | str]:
        """As JSON keeps it."""
        return {"version": VERSION, "position": self.position, "fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, state: Mapping[str, object]) -> Cursor:
        """Read back what `to_dict` wrote.

        Raises:
            CheckpointError: It is of another version, or fields are missing or of another type.
        """
        if state.get("version") != VERSION:
            raise CheckpointError(
                f"the data position is kept in version {state.get('version')!r}, this program reads {VERSION}",
                "cursor.version",
                "resume with the version of the launcher that wrote the checkpoint",
            )
        position, fingerprint = state.get("position"), state.get("fingerprint")
        if isinstance(position, bool) or not isinstance(position, int) or position < 0:
            raise CheckpointError(
                f"the data position {position!r} is not a count of samples", "cursor.position", _DAMAGED
            )
        if not isinstance(fingerprint, str):
            raise CheckpointError(f"the data fingerprint {fingerprint!r} is not text", "cursor.fingerprint", _DAMAGED)
        return cls(position, fingerprint)

    def check(self, fingerprint: str) -> None:
        """Refuse to go on with other data, or the same data in another order.

        Args:
            fingerprint: `Loader.fingerprint` of what is opened now.

        Raises:
            CheckpointError: It differs from the checkpoint's.
        """
        if fingerprint != self.fingerprint:
            raise CheckpointError(
                f"the checkpoint stands at sample {self.position} of another data order "
                f"({self.fingerprint}, now {fingerprint})",
                "cursor.fingerprint",
                "put back the shards, sequence length, objective and seed it was trained with, or start a new run",
            )
