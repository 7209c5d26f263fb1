# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How far a long audit has come, for whoever waits at a terminal."""

from __future__ import annotations

import os
import typing as t

#: Is told each step in words.
Progress = t.Callable[[str], None]


def silent(_step: str) -> None:
    """For programs."""


class Line:
    """One line of ``stream`` that each step overwrites; a line for each step where it may not be overwritten.

    Nothing is written unless the stream is a terminal or ``wanted``. Control sequences are sent to terminals alone, and
    none with NO_COLOR in the environment (no-color.org) or a TERM that is dumb.
    """

    def __init__(
        self, stream: t.TextIO, *, wanted: bool = False, environ: t.Optional[t.Mapping[str, str]] = None
    ) -> None:
        variables = os.environ if environ is None else environ
        terminal = stream.isatty()
        self._stream = stream
        self._shown = terminal or wanted
        self._overwrites = terminal and not variables.get("NO_COLOR") and variables.get("TERM") != "dumb"
        self._open = False

    def __call__(self, step: str) -> None:
        if not self._shown:
            return
        if self._overwrites:
            # Dimmed, and cut so that it stays one line of the narrowest usual terminal.
            self._stream.write(f"\r\x1b[K\x1b[2m{step[:78]}\x1b[0m")
            self._open = True
        else:
            self._stream.write(f"{step}\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves nothing behind on a terminal."""
        if self._open:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._open = False

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
