# SPDX-License-Identifier: MIT
"""One bound in bytes for everything of ours that keeps data only so that something is quicker or can be repeated.

Members say what they grow by; over the bound they are made to shrink, the one that is missed least first: what is kept
for clients that are away (the longest away first), then spoken texts, then what is kept for clients that are there.

Environment: ``WHEELS_OPS_MEMORY_BUDGET_MB`` (64, of this process).
"""

from __future__ import annotations

import logging
import typing as t
from dataclasses import dataclass

logger = logging.getLogger(__name__)

#: The variable that sets the bound, and what it is without it, in MiB.
VARIABLE, DEFAULT_MB = "WHEELS_OPS_MEMORY_BUDGET_MB", 64.0
#: The order in which members shrink.
AWAY, SPEECH, PRESENT = 1, 2, 3
#: Down to this share of the bound, so that not every message makes room for itself.
DOWN_TO = 0.95


@dataclass
class Member:
    """``shrink`` gives back at least so many bytes, as far as it holds them, and says how many."""

    name: str
    order: int
    shrink: t.Callable[[int], int]


class Budget:
    """Belongs to the event loop's thread."""

    def __init__(self, limit: int = int(DEFAULT_MB) << 20) -> None:
        self.limit = limit
        self.used = 0
        #: How often room was made.
        self.shrunk = 0
        self.members: t.List[Member] = []
        self._making_room = False

    def register(self, name: str, order: int, shrink: t.Callable[[int], int]) -> None:
        kept = [member for member in self.members if member.name != name]
        self.members = sorted([*kept, Member(name, order, shrink)], key=lambda member: member.order)

    def change(self, size: int) -> None:
        """A member holds so many bytes more, or less."""
        self.used += size
        if size > 0 and self.used > self.limit and not self._making_room:
            self._make_room()

    def _make_room(self) -> None:
        self._making_room = True
        try:
            self.shrunk += 1
            goal = int(DOWN_TO * self.limit)
            for member in self.members:
                if self.used > goal:
                    member.shrink(self.used - goal)
        finally:
            self._making_room = False
        if self.shrunk & (self.shrunk - 1) == 0:  # the first, second, fourth time and so on
            logger.warning(
                "🧹 What is kept for clients and as speech reached %d MiB (%s), %d times so far: the oldest is given up",
                self.limit >> 20,
                VARIABLE,
                self.shrunk,
            )


budget = Budget()
