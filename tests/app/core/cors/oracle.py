# SPDX-License-Identifier: GPL-3.0-or-later
"""What a browser that follows the Fetch standard concludes from a response. It shares no code with the layer under
test.

https://fetch.spec.whatwg.org/#concept-cors-check and #cors-preflight-fetch-0, step by step.
"""

from __future__ import annotations

import re
import typing as t

Headers = t.Sequence[t.Tuple[str, str]]
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SAFELISTED_METHODS = {"GET", "HEAD", "POST"}


def get(headers: Headers, name: str) -> t.Optional[str]:
    """ "Get a header": all values, joined by a comma and a space."""
    values = [value.strip(" \t") for key, value in headers if key.lower() == name]
    return ", ".join(values) if values else None


def extract(headers: Headers, name: str) -> t.Optional[t.List[str]]:
    """ "Extract header list values" for a list of tokens; None is the standard's failure."""
    value = get(headers, name)
    if value is None:
        return []
    found = [part.strip(" \t") for part in value.split(",")]
    found = [part for part in found if part]
    return found if all(_TOKEN.fullmatch(part) for part in found) else None


def cors_check(origin: str, credentials: bool, headers: Headers) -> bool:
    allowed = get(headers, "access-control-allow-origin")
    if allowed is None:
        return False
    if not credentials and allowed == "*":
        return True
    if allowed != origin:
        return False
    return not credentials or get(headers, "access-control-allow-credentials") == "true"


def preflight_check(
    origin: str, credentials: bool, method: str, names: t.Sequence[str], status: int, headers: Headers
) -> bool:
    if not cors_check(origin, credentials, headers) or not 200 <= status <= 299:
        return False
    methods = extract(headers, "access-control-allow-methods")
    allowed = extract(headers, "access-control-allow-headers")
    if methods is None or allowed is None:
        return False
    if method not in methods and method not in _SAFELISTED_METHODS and (credentials or "*" not in methods):
        return False
    lowered = {name.lower() for name in allowed}
    for name in (name.lower() for name in names):
        if name == "authorization" and name not in lowered:
            return False
        if name not in lowered and (credentials or "*" not in lowered):
            return False
    return True


def verdict(method: str, sent: Headers, status: int, headers: Headers) -> str:
    """``allow`` (with credentials), ``allow-anonymous``, ``deny``, or ``n/a`` when the request was not
    a CORS request.
    """
    origin = get(sent, "origin")
    if origin is None:
        return "n/a"
    asked = get(sent, "access-control-request-method")
    names = [part.strip(" \t") for part in (get(sent, "access-control-request-headers") or "").split(",")]
    names = [name for name in names if name]

    def passes(credentials: bool) -> bool:
        if method == "OPTIONS" and asked is not None:
            return preflight_check(origin, credentials, asked, names, status, headers)
        return cors_check(origin, credentials, headers)

    if passes(True):
        return "allow"
    return "allow-anonymous" if passes(False) else "deny"
