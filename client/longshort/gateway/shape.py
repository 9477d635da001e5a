"""What the models of all sessions of one gateway have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Shape:
    """The width of values and answers: those of the first session that was opened, zeros before.

    All must be alike, since the answers of many sessions are one array.
    """

    num_features: int = 0
    num_outputs: int = 0

    @property
    def is_known(self) -> bool:
        """Whether a session was opened."""
        return self.num_features > 0
