# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sizes and durations as people write them."""

from __future__ import annotations

import re
import typing as t

from .results import OpsError

#: As logrotate and systemd read them (K, M, G: powers of 1024), and as disks are sold (KB, MB, GB: powers of 1000).
_SIZES: t.Dict[str, int] = {
    "": 1,
    "b": 1,
    "k": 1024,
    "kib": 1024,
    "kb": 1000,
    "m": 1024**2,
    "mib": 1024**2,
    "mb": 1000**2,
    "g": 1024**3,
    "gib": 1024**3,
    "gb": 1000**3,
    "t": 1024**4,
    "tib": 1024**4,
    "tb": 1000**4,
}
_DURATIONS: t.Dict[str, float] = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_LARGEST_SIZE = 2**60
_LONGEST = 100 * _DURATIONS["y"]


def _parse(
    value: t.Union[str, int, float], units: t.Mapping[str, float], name: str, example: str, largest: float
) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or match[2].lower() not in units:
        raise OpsError(
            f"{name} must be a number that is not negative, with or without a unit, got {value!r}.",
            hint=f"For example {example}.",
        )
    number = float(match[1]) * units[match[2].lower()]
    if number > largest:
        raise OpsError(f"{name} must be at most {largest:,.15g}, got {value!r}.", hint=f"For example {example}.")
    return number


def size(value: t.Union[str, int, float], name: str) -> int:
    """Bytes of ``50M`` (1024 * 1024 each), ``50MB`` (1000 * 1000 each) or a bare number.

    Raises ``OpsError`` that names the option.
    """
    return int(_parse(value, _SIZES, name, "50MB", _LARGEST_SIZE))


def duration(value: t.Union[str, int, float], name: str) -> float:
    """Seconds of ``90``, ``15m``, ``24h``, ``7d`` or ``4w``. Raises ``OpsError`` that names the option."""
    return _parse(value, _DURATIONS, name, "24h", _LONGEST)


def readable(count: float) -> str:
    """Bytes for people: ``66.1 MB``."""
    for unit, divisor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= divisor:
            return f"{count / divisor:.1f} {unit}"
    return f"{count:.0f} bytes"


def quantity(value: t.Any, unit: str) -> str:
    """A measured value for people: ``97.8 %``, ``61.4 kB of audio``, ``1.2 s``, ``20 keys without expiry``. A value
    that is no number (a check without an answer) is ``no answer``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "no answer" if value is None else str(value)
    head, _space, rest = unit.partition(" ")
    number = f"{value:,.1f}" if abs(value) < 100 and value % 1 else f"{value:,.0f}"
    if head in ("%", "percent"):
        return f"{number} % {rest}".rstrip()
    if head == "bytes":
        return f"{readable(value)} {rest}".rstrip()
    if head == "ms":
        return f"{f'{value / 1000:.1f} s' if value >= 1000 else f'{value:.0f} ms'} {rest}".rstrip()
    return f"{number} {unit}".rstrip()
