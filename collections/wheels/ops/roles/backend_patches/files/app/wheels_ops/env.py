# SPDX-License-Identifier: MIT
"""Reads environment variables: numbers, switches and lists, in the same way for every file of ours.

A variable that is unset or empty has its default. So has one that cannot be read or is out of range, and the log gets
one line that says what it must be; the same wrong value is not reported twice. ``settings=True`` asks the application's
settings where the environment is silent, for variables that the application declares itself.
"""

from __future__ import annotations

import math
import os
import typing as t

from app.core.logging import get_logger

logger = get_logger(__name__)

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
#: Values that were refused: each is reported once.
_refused: t.Set[t.Tuple[str, str]] = set()


def app_settings() -> t.Any:
    """The application's settings object, in whichever way its release offers it. Raises what reading them raises."""
    from app.core import config

    getter = getattr(config, "get_settings", None)
    return getter() if getter else getattr(config, "settings", None)


def raw(name: str, *, settings: bool = False) -> t.Any:
    """The value as it stands: text from the environment, any type from the settings, None where neither has one."""
    text = os.environ.get(name, "").strip()
    if text or not settings:
        return text or None
    try:
        value = getattr(app_settings(), name, None)
    except Exception as error:  # settings that cannot be read must not stop what asks for one variable
        _report(name, type(error).__name__, f"{name} cannot be read from the settings: {type(error).__name__}.")
        return None
    return None if value == "" else value


def number(
    name: str, default: float, low: float = 0.0, high: float = math.inf, *, settings: bool = False, whole: bool = False
) -> float:
    """A finite number from ``low`` to ``high``; ``whole``: without a fraction. Everything else is ``default``."""
    value = raw(name, settings=settings)
    if value is None:
        return default
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if low <= result <= high and math.isfinite(result) and (not whole or result.is_integer()):
        return result
    kind = "a whole number" if whole else "a number"
    bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
    _report(name, value, f"{name} must be {kind}, {bounds}, got {_shown(value)}. Using {default:g}.")
    return default


def integer(name: str, default: int, low: int = 0, high: float = math.inf, *, settings: bool = False) -> int:
    """A whole number from ``low`` to ``high``."""
    return int(number(name, default, low, high, settings=settings, whole=True))


def flag(name: str, default: bool, *, settings: bool = False) -> bool:
    """A switch: 1, true, yes, on or 0, false, no, off in any case."""
    value = raw(name, settings=settings)
    if value is None or isinstance(value, bool):
        return default if value is None else value
    word = str(value).strip().lower()
    if word in TRUE or word in FALSE:
        return word in TRUE
    _report(name, value, f"{name} must be true or false, got {_shown(value)}. Using {str(default).lower()}.")
    return default


def names(name: str, default: t.Sequence[str] = (), separator: str = ",") -> t.List[str]:
    """Entries between separators, without the blanks around them. A variable that is set to nothing has no entries."""
    text = os.environ.get(name)
    entries = default if text is None else [entry.strip() for entry in text.split(separator)]
    return [entry for entry in entries if entry]


def paths(name: str, default: t.Sequence[str] = ()) -> t.List[str]:
    """Paths between colons."""
    return names(name, default, os.pathsep)


def text(name: str, default: str = "", *, settings: bool = False) -> str:
    """A value as text, without blanks around it."""
    value = raw(name, settings=settings)
    return default if value is None else str(value).strip()


def _shown(value: object) -> str:
    """As much of a value as tells which one it is."""
    shown = repr(str(value))
    return shown if len(shown) <= 42 else f"{shown[:40]}...'"


def _report(name: str, value: object, line: str) -> None:
    key = (name, str(value))
    if key not in _refused:
        _refused.add(key)
        logger.warning(line)
