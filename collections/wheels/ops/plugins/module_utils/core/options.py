# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Validators of options, one for each kind of value. Every error has one form and names the option:

``timeout must be between 1 and 600 seconds, got 700.``, then a hint that says what to do. A value that may hold a
secret is not repeated: ``got a value of 21 characters``.
"""

from __future__ import annotations

import os
import re
import typing as t
import urllib.parse

from .redaction import is_secret, redact
from .results import OpsError

HTTP: t.Tuple[str, ...] = ("http", "https")
WEBSOCKET: t.Tuple[str, ...] = ("ws", "wss")
REDIS: t.Tuple[str, ...] = ("redis", "rediss", "unix")

ADDRESS: t.Tuple[str, ...] = (*HTTP, *REDIS)

_KINDS: t.Mapping[t.Tuple[str, ...], t.Tuple[str, str]] = {
    HTTP: ("an http(s) URL", "http://127.0.0.1:8000"),
    WEBSOCKET: ("a ws:// or wss:// URL", "ws://127.0.0.1:8000/api/v1/pam/ws/probe"),
    REDIS: ("a redis://, rediss:// or unix:// URL", "redis://user:PASSWORD@127.0.0.1:6379/0"),
    ADDRESS: ("an http(s) or Redis URL", "http://127.0.0.1:8000/readyz"),
}
#: scheme://host or scheme://host:port, as a browser sends it (RFC 6454, 6.1).
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
#: A token of RFC 9110, 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f]")


def got(name: str, value: t.Any) -> str:
    """The end of a message: the value without secrets, or how long it is where it may be one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"got {_plain(value)}"
    text = value if isinstance(value, str) else repr(value)
    if is_secret(name) or "@" in text:
        return f"got a value of {len(text)} characters"
    redacted = redact(text)
    return f"got {redacted!r}" if isinstance(value, str) else f"got {redacted}"


def in_range(
    name: str,
    value: float,
    low: float,
    high: t.Optional[float] = None,
    *,
    unit: str = "",
    above: bool = False,
    hint: str = "",
) -> None:
    """Require ``low <= value <= high``; with ``above`` more than ``low``; without ``high`` no upper limit.

    NaN is refused.
    """
    fits = (value > low if above else value >= low) and (high is None or value <= high)
    if fits:
        return
    if above:
        bounds = f"greater than {_plain(low)}" + (f" and at most {_plain(high)}" if high is not None else "")
    elif high is None:
        bounds = f"at least {_plain(low)}"
    else:
        bounds = f"between {_plain(low)} and {_plain(high)}"
    words = f"{bounds} {unit}".rstrip()
    raise OpsError(f"{name} must be {words}, {got(name, value)}.", hint=hint or f"Set {name} to a value in this range.")


def number(name: str, value: t.Any, kind: t.Callable[[t.Any], float] = float) -> t.Any:
    """The value as ``kind``; a truth value is no number."""
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value is no number")
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        words = "a whole number" if kind is int else "a number"
        raise OpsError(f"{name} must be {words}, {got(name, value)}.", hint=f"Give {name} as {words}.") from None


def choice(name: str, value: str, options: t.Sequence[str], *, hint: str = "") -> None:
    """Require one of ``options``."""
    if value not in options:
        raise OpsError(
            f"{name} must be one of {', '.join(options)}, {got(name, value)}.", hint=hint or "Choose one of them."
        )


def choices(name: str, values: t.Iterable[str], options: t.Sequence[str], *, hint: str = "") -> None:
    """Require at least one value, and none but those of ``options``."""
    values = list(values)
    not_empty(name, values, hint=f"Choose from {', '.join(options)}.")
    unknown = sorted(set(map(str, values)) - set(options))
    if unknown:
        raise OpsError(
            f"{name} must contain only {', '.join(options)}, got {redact(', '.join(unknown))}.",
            hint=hint or "Remove or correct the others.",
        )


def not_empty(name: str, values: t.Collection[t.Any], *, hint: str) -> None:
    """Require a list with at least one entry."""
    if not values:
        raise OpsError(f"{name} must not be empty.", hint=hint)


def no_empty_entry(name: str, values: t.Iterable[str], *, reason: str = "", hint: str) -> None:
    """Require that no entry of a list is an empty text; ``reason`` says what an empty one would do."""
    if not all(values):
        raise OpsError(f"{name} must not contain an empty entry{f': {reason}' if reason else ''}.", hint=hint)


def matching(name: str, value: str, pattern: t.Pattern[str], description: str, *, hint: str = "") -> None:
    """Require a text of the form ``description`` says, such as ``1 to 64 letters, digits, - and _``."""
    if not pattern.fullmatch(value):
        raise OpsError(f"{name} must be {description}, {got(name, value)}.", hint=hint or f"Correct {name}.")


def regular_expression(name: str, value: str) -> t.Pattern[str]:
    """The compiled expression."""
    try:
        return re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise OpsError(
            f"{name} must be a regular expression of Python, {got(name, value)}: {error}.", hint="Correct it."
        ) from None


def url(
    name: str, value: str, schemes: t.Tuple[str, ...] = HTTP, *, hint: str = ""
) -> t.Optional[urllib.parse.SplitResult]:
    """Require an address at which something can be asked: one of ``schemes``, a host, a port that is not 0, no space in
    it.
    """
    try:
        parts = urllib.parse.urlsplit(value)
        usable = (
            parts.scheme in schemes
            and (parts.scheme == "unix" or (bool(parts.hostname) and parts.port != 0))
            and not _BREAKS.search(value)
        )
    except ValueError:
        usable = False
    if usable:
        return parts
    kind, example = _KINDS[schemes]
    # A Redis URL mostly holds a password, a query a token; where the URL is malformed nobody knows where they end.
    hidden = "redis" in schemes or "?" in value
    reason = f"got a value of {len(value)} characters" if hidden else got(name, value)
    raise OpsError(f"{name} must be {kind}, {reason}.", hint=hint or f"For example {example}.")


def origin(name: str, value: str) -> None:
    """Require what a browser sends as Origin: ``null``, or scheme, host and port without a path."""
    try:
        usable = value == "null" or (_ORIGIN.fullmatch(value) is not None and urllib.parse.urlsplit(value).port != 0)
    except ValueError:
        usable = False
    if not usable:
        raise OpsError(
            f"{name} must be an origin, {got(name, value)}.",
            hint="For example https://wheelsandwins.com, without a path and without a slash at the end.",
        )


def headers(name: str, values: t.Mapping[t.Any, t.Any], *, forbidden: t.Optional[t.Mapping[str, str]] = None) -> None:
    """Require headers that can be sent. ``forbidden``: names in lower case, and the option to use instead."""
    for header, value in values.items():
        if not _TOKEN.fullmatch(str(header)) or re.search(r"[\r\n\0]", str(value)):
            raise OpsError(
                f"{name} must be headers that can be sent, got the header {str(header)!r}.",
                hint="A name consists of letters, digits and -, a value is one line.",
            )
        instead = (forbidden or {}).get(str(header).lower())
        if instead:
            raise OpsError(f"{name} must not contain {header}.", hint=f"Use {instead}.")


def tokens(name: str, values: t.Iterable[str]) -> None:
    """Require words that can be a method, the name of a header or a subprotocol."""
    for value in values:
        matching(name, value, _TOKEN, "words of letters, digits and -")


def ascending(name: str, limits: t.Mapping[str, t.Optional[float]]) -> None:
    """Require that limits do not fall in their order; those that are None do not count."""
    present = {level: limit for level, limit in limits.items() if limit is not None}
    if list(present.values()) != sorted(present.values()):
        text = ", ".join(f"{level} {_plain(limit)}" for level, limit in present.items())
        raise OpsError(f"{name} must be in ascending order, got {text}.", hint=f"Give them as {' <= '.join(limits)}.")


def absolute_path(name: str, value: str) -> str:
    """The path made normal. Require an absolute one without ``..``."""
    if not value.startswith("/") or ".." in value.split("/") or "\0" in value:
        raise OpsError(f"{name} must be an absolute path without '..', {got(name, value)}.", hint="Give the full path.")
    return os.path.normpath(value).replace("//", "/")


def url_path(name: str, value: str) -> None:
    """Require the path of a URL that a request line can carry as it stands."""
    if not value or _BREAKS.search(value) or "#" in value or "://" in value:
        raise OpsError(f"{name} must be the path of a URL, {got(name, value)}.", hint="For example /api/v1/pam/chat.")


def known_keys(name: str, keys: t.Iterable[t.Any], options: t.Collection[str]) -> None:
    """Require that a dictionary has no key but those of ``options``."""
    unknown = sorted(set(map(str, keys)) - set(options))
    if unknown:
        raise OpsError(
            f"{name} has unknown keys: {', '.join(unknown)}.", hint=f"Use only {', '.join(sorted(options))}."
        )


def _plain(value: t.Optional[float]) -> str:
    return f"{value:,.15g}"
