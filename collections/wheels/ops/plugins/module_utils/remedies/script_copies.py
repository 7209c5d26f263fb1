# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copies of SQL scripts and of their undo scripts on the host, for a person who needs them by hand."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from ..database.scripts import Script
from ..host.files import make_directories, write_atomically


def write(directory: str, scripts: t.Sequence[Script], *, check_mode: bool = False) -> t.List[str]:
    """Writes ``NAME.sql`` and ``NAME.undo.sql`` of every script below ``directory``, and gives the paths that differed.

    Raises ``OpsError`` for a file that cannot be written. Needs no database.
    """
    texts: t.Dict[Path, str] = {}
    for script in scripts:
        texts[Path(directory, script.name)] = script.text
        if script.undo:
            texts[Path(directory, f"{re.sub(r'[.]sql$', '', script.name)}.undo.sql")] = script.undo
    different = [path for path, text in texts.items() if not _holds(path, text)]
    if different and not check_mode:
        make_directories(Path(directory), mode=0o755)
        for path in different:
            write_atomically(path, texts[path].encode(), mode=0o644)
    return [str(path) for path in different]


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False
