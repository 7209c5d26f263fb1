# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a remedy gives back, and how it says that it could not."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from .redaction import redact

_NOT_UTF8 = re.compile("[\ud800-\udfff]")


def escape_names(value: t.Any) -> t.Any:
    """A copy of anything that JSON knows in which every text is UTF-8: a byte of a file's name that is not is written
    ``\\xff``, as ``ls --quoting-style=escape`` and Python do.
    """
    if isinstance(value, str):
        return _NOT_UTF8.sub(_escape, value)
    if isinstance(value, dict):
        return {escape_names(key): escape_names(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape_names(entry) for entry in value]
    return value


def _escape(match: t.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


class OpsError(Exception):
    """A remedy or check could not do its work; nothing was left half done.

    ``message`` says what went wrong, ``hint`` what a person should do next, ``details`` carries the last state seen.
    """

    def __init__(self, message: str, *, hint: str = "", **details: t.Any) -> None:
        # Whatever a server or a library said, it is shown and kept without secrets.
        self.message = redact(message)
        self.hint = redact(hint)
        super().__init__(self.message)
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


@dataclass
class Result:
    """The one result shape of every remedy, the same in check mode as in a real run.

    ``actions`` is a list of dictionaries, each with at least ``action`` (a verb), ``target`` and ``changed``; what was
    measured stands beside it with its unit in the key (``bytes_freed``, ``rows``, ``duration_ms``).
    ``diff`` is what ``--diff`` prints: dictionaries with ``before``, ``after`` and optional headers.
    ``warnings`` are sentences about what is probably not as it was meant; Ansible shows them apart, so they are not in
    ``as_dict``.
    """

    changed: bool = False
    before: t.Dict[str, t.Any] = field(default_factory=dict)
    after: t.Dict[str, t.Any] = field(default_factory=dict)
    actions: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    msg: str = ""
    diff: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    extra: t.Dict[str, t.Any] = field(default_factory=dict)
    warnings: t.List[str] = field(default_factory=list)

    def as_dict(self) -> t.Dict[str, t.Any]:
        """The result as a module returns it; ``extra`` is merged at the top level."""
        return {
            "changed": self.changed,
            "before": self.before,
            "after": self.after,
            "actions": self.actions,
            "msg": self.msg,
            "diff": self.diff,
            **self.extra,
        }
