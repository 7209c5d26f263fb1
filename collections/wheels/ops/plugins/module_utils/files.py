# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writing files so that a power cut leaves the old content or the new, never a half."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import typing as t
from pathlib import Path

from .results import OpsError


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sync_directory(path: Path) -> None:
    """Makes renames inside a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600, owner: t.Optional[t.Tuple[int, int]] = None) -> None:
    """Writes beside the target and renames over it. ``owner`` is (uid, gid), given where we may set it.

    Raises ``OpsError`` that names the path and what stands in the way (read-only, full, no right).
    """
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".wheels-ops", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), *owner)
            os.fsync(file.fileno())
        os.replace(name, path)
        sync_directory(path.parent)
    except OSError as error:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
        raise OpsError(f"Cannot write {path}: {error.strerror}.", hint="Nothing of it was changed. Give the user of this task the right, or room.") from error


def read_json(path: Path) -> t.Any:
    """The JSON in a file, None where there is none. Raises ``OpsError`` for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OpsError(f"Cannot read {path}: {error}.", hint="Look at the file; move it away if it is damaged.") from error


def write_json(path: Path, value: t.Any) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode())
