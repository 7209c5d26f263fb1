# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps of a long audit on a terminal, in a pipe and where colours are not wanted."""

from __future__ import annotations

import io
import typing as t

import pytest

from wheels_ops.rls.audit.progress import Line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "stream, wanted, environ, expected",
    [
        (Terminal, False, {}, "\r\x1b[K\x1b[2mone\x1b[0m\r\x1b[K\x1b[2mtwo\x1b[0m\r\x1b[K"),
        (Terminal, False, {"NO_COLOR": "1"}, "one\ntwo\n"),
        (Terminal, False, {"NO_COLOR": "", "TERM": "dumb"}, "one\ntwo\n"),
        (io.StringIO, False, {}, ""),
        (io.StringIO, True, {}, "one\ntwo\n"),
    ],
)
def test_steps(stream: t.Callable[[], io.StringIO], wanted: bool, environ: t.Dict[str, str], expected: str) -> None:
    place = stream()
    with Line(place, wanted=wanted, environ=environ) as line:
        line("one")
        line("two")
    assert place.getvalue() == expected
