"""What a checkpoint must remember of the data: one integer, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from launcher.errors import CheckpointError

VERSION = 2
_DAMAGED = "the checkpoint is damaged: resume from an earlier one"


@dataclass(frozen=True)
class Cursor:
    """How far a run has come in its data."""

    position: int
    """Samples consumed by all ranks together: the next step starts here."""
    fingerprint: str
    """`Loader.fingerprint_at` of the position: all that decided the samples before it."""
    consumed: Mapping[str, int] = field(default_factory=dict)
    """Samples consumed of each corpus, by name; follows from the rest, and is here to be read."""

    def to_dict(self) -> dict[str, object]:
        """As JSON keeps it."""
        return {
            "version": VERSION,
            "position": self.position,
            "fingerprint": self.fingerprint,
            "consumed": dict(self.consumed),
        }

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
        position, fingerprint, consumed = state.get("position"), state.get("fingerprint"), state.get("consumed")
        if not _is_count(position):
            raise CheckpointError(
                f"the data position {position!r} is not a count of samples", "cursor.position", _DAMAGED
            )
        if not isinstance(fingerprint, str):
            raise CheckpointError(f"the data fingerprint {fingerprint!r} is not text", "cursor.fingerprint", _DAMAGED)
        if not isinstance(consumed, dict) or not all(_is_count(count) for count in consumed.values()):
            raise CheckpointError(
                f"the samples consumed of each corpus, {consumed!r}, are no counts", "cursor.consumed", _DAMAGED
            )
        return cls(position, fingerprint, consumed)

    def check(self, fingerprint: str) -> None:
        """Refuse to go on with other data, or the same data in another order.

        Args:
            fingerprint: `Loader.fingerprint_at(self.position)` of what is opened now.

        Raises:
            CheckpointError: It differs from the checkpoint's.
        """
        if fingerprint != self.fingerprint:
            raise CheckpointError(
                f"the checkpoint stands at sample {self.position} of another data order "
                f"({self.fingerprint}, now {fingerprint})",
                "cursor.fingerprint",
                "put back the shards and their names, sequence length, objective, seed and weights it was trained with "
                "up to here (later weights may change), or start a new run",
            )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
