# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""JSON in files that a power cut leaves with the old content or the new, never a half. Files are written by ``host/files.py``."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from .host.files import make_directories, sha256, write_atomically
from .results import OpsError

__all__ = ["read_json", "sha256", "write_atomically", "write_json"]


def read_json(path: Path) -> t.Any:
    """The JSON in a file, None where there is none. Raises ``OpsError`` for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OpsError(
            f"Cannot read {path}: {error}.", hint="Look at the file; move it away if it is damaged."
        ) from error


def write_json(path: Path, value: t.Any) -> None:
    """Raises ``OSError`` where its directory cannot be made, ``OpsError`` where it cannot be written."""
    make_directories(path.parent)
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode())
