# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""JSON in files: written whole, so that a power cut leaves the old content or the new, and read although it may be
damaged.
"""

from __future__ import annotations

import json
import math
import os
import stat
import typing as t
from pathlib import Path

from ..core.results import OpsError
from ..host.files import make_directories, write_atomically

#: A manifest of a thousand files has some 500 kB.
MAX_BYTES = 64 << 20


class Damaged(OpsError):
    """A file that is there and cannot be used; ``reason`` says why, in a few words."""

    def __init__(self, path: Path, reason: str, hint: str) -> None:
        super().__init__(f"{path} is damaged: {reason}.", hint=hint)
        self.path = path
        self.reason = reason


def load(path: Path, *, hint: str) -> t.Optional[t.Dict[str, t.Any]]:
    """The JSON object in a regular file, None where there is no file.

    Raises ``Damaged`` with ``hint`` for everything else.
    """
    text = content(path, hint=hint)
    if text is None:
        return None
    try:
        value = parse(text)
    except ValueError as error:
        raise Damaged(path, f"it is no JSON ({error})", hint) from None
    if not isinstance(value, dict):
        raise Damaged(path, f"it holds {kind(value)} where an object belongs", hint)
    return value


def write(path: Path, value: t.Any) -> None:
    """Raises ``OSError`` where its directory cannot be made, ``OpsError`` where it cannot be written."""
    make_directories(path.parent)
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode())


def content(path: Path, *, hint: str) -> t.Optional[bytes]:
    """The bytes of a regular file, None where there is no file.

    Raises ``Damaged`` with ``hint`` for everything else.
    """
    try:
        # Neither through a link, nor to wait for the other end of a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise Damaged(path, f"{path.parent} is no directory", hint) from None
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})", hint) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Damaged(path, "it is no regular file", hint)
        with open(descriptor, "rb", closefd=False) as file:
            text = file.read(MAX_BYTES + 1)
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})", hint) from None
    finally:
        os.close(descriptor)
    if len(text) > MAX_BYTES:
        raise Damaged(path, f"it has more than {MAX_BYTES} bytes", hint)
    return text


def _unreadable(path: Path, error: OSError) -> OpsError:
    """Nothing is wrong with the file: this user may not look."""
    return OpsError(f"{path} cannot be read: {error.strerror}.", hint="Run as root (ansible_become: true).")


def parse(content: t.Union[bytes, str]) -> t.Any:
    """The JSON value of a text. Raises ``ValueError`` alone, whatever the text is."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def objects(content: bytes) -> t.Tuple[t.List[t.Dict[str, t.Any]], int]:
    """The JSON objects of a file with one a line, and how many lines hold none; empty lines do not count."""
    values: t.List[t.Dict[str, t.Any]] = []
    damaged = 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            value = parse(line)
        except ValueError:
            damaged += 1
            continue
        if isinstance(value, dict):
            values.append(value)
        else:
            damaged += 1
    return values, damaged


def kind(value: t.Any) -> str:
    """What a JSON value is, for a message."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def number(value: t.Any) -> bool:
    """Whether a JSON value is a finite number that a time can be."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12 and math.isfinite(value)
    )
