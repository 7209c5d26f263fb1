# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""JSON in files that a power cut leaves with the old content or the new, never a half. ``files`` writes them."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from .files import make_directories, write_atomically


def write_json(path: Path, value: t.Any) -> None:
    """Raises ``OSError`` where its directory cannot be made, ``OpsError`` where it cannot be written."""
    make_directories(path.parent)
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode())
