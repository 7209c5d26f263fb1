# SPDX-License-Identifier: MIT
"""The token bucket that limits handshakes, requests and failed sign-ins."""

from __future__ import annotations

import time
import typing as t


class TokenBucket:
    """Allows ``burst`` at once and ``rate`` a second on average; a rate of 0 switches it off."""

    __slots__ = ("burst", "clock", "filled", "rate", "tokens")

    def __init__(self, rate: float, burst: float, clock: t.Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self.tokens, self.filled = burst, clock()

    def take(self) -> float:
        """Takes a token: 0 where there was one, else the seconds to wait for the next."""
        if not self.rate:
            return 0.0
        now = self.clock()
        self.tokens = min(self.burst, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate
