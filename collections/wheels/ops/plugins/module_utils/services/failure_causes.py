# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Why a service does not start, out of the last lines that it wrote, in one sentence for the person on call.

Only the newest cause counts: a service that is started again and again writes the same several times, and an older one
may be repaired.
"""

from __future__ import annotations

import re
import typing as t

from ..core.results import OpsError
from ..host import processes

_PLACE = re.compile(r'File "(?P<path>[^"]+)", line (?P<line>\d+)')
_SYNTAX = re.compile(r"\b(?P<name>SyntaxError|IndentationError|TabError): (?P<text>.+)")
_MODULE = re.compile(r"\b(?:ModuleNotFoundError: )?No module named '?(?P<module>[\w.]+)'?")
_NAME = re.compile(r"\bImportError: (?P<text>.+)")
_ADDRESS = re.compile(r"(?i)\baddress already in use\b")
_PORT = re.compile(r"[:,(\s](?P<port>\d{2,5})\b")
_FILE = re.compile(r"(?i)\bno such file or directory:? ?'?(?P<path>/[^'\"\s]+)?")
#: A pattern of a line, and the sentence for it; the first that matches the newest line counts.
_SENTENCES: t.Sequence[t.Tuple[t.Pattern[str], str]] = (
    (re.compile(r"(?i)password authentication failed"), "The database refuses its password."),
    (re.compile(r"(?i)no space left on device"), "Its disk is full."),
    (re.compile(r"(?i)read-only file system"), "Its file system is read-only."),
    (re.compile(r"(?i)cannot allocate memory|\bMemoryError\b"), "It gets no memory."),
    (re.compile(r"(?i)\bout of memory\b|\boom-kill"), "The kernel ended it, since memory ran out."),
    (re.compile(r"(?i)\bpermission denied\b"), "It may not open a file or a port that it needs."),
    (re.compile(r"(?i)too many open files"), "It has too many files open for its limit (LimitNOFILE)."),
    (re.compile(r"(?i)too many clients already|remaining connection slots"), "The database takes no more connections."),
    (re.compile(r"(?i)connection refused"), "What it connects to refuses the connection."),
)
#: As many of the last lines are shown, and as much of each.
_SHOWN, _WIDTH = 3, 160


def explain(lines: t.Sequence[str], *, port: int = 0) -> str:
    """The cause in one sentence, empty where none is known. ``port``: where the service should listen, for the process
    that has it.
    """
    for number in range(len(lines) - 1, -1, -1):
        cause = _cause(lines, number, port)
        if cause:
            return cause
    return ""


def last_lines(lines: t.Sequence[str]) -> str:
    """The last lines as one sentence of a hint; empty where there are none."""
    shown = [" ".join(line.split())[:_WIDTH] for line in lines if line.strip()][-_SHOWN:]
    return f"Its last lines: {' / '.join(shown)}" if shown else "It wrote nothing."


def _cause(lines: t.Sequence[str], number: int, port: int) -> str:
    line = lines[number]
    match = _SYNTAX.search(line)
    if match:
        return f"{_where(lines, number)}{match['name']}: {match['text'].strip().rstrip('.')}."
    match = _MODULE.search(line)
    if match:
        return f"The Python module {match['module']} is missing."
    match = _NAME.search(line)
    if match:
        return f"{_where(lines, number)}ImportError: {match['text'].strip().rstrip('.')}."
    if _ADDRESS.search(line):
        return _holder(port or _number(line))
    match = _FILE.search(line)
    if match:
        return f"{match['path'] or 'A file'} is missing."
    return next((sentence for pattern, sentence in _SENTENCES if pattern.search(line)), "")


def _where(lines: t.Sequence[str], number: int) -> str:
    """The file and line of the traceback that ends with this line; the innermost frame is the last one before it."""
    for line in reversed(lines[max(0, number - 6) : number]):
        place = _PLACE.search(line)
        if place:
            return f"{place['path']}, line {place['line']}: "
    return ""


def _number(line: str) -> int:
    ports = [int(match["port"]) for match in _PORT.finditer(line)]
    return next((port for port in reversed(ports) if 0 < port < 65_536 and port != 98), 0)


def _holder(port: int) -> str:
    """Who listens on a port that a service wants."""
    if not port:
        return "Its port is taken by another process."
    try:
        by_inode = processes.holders([listener.inode for listener in processes.listeners(port)])
    except OpsError:
        by_inode = {}
    pids = sorted({pid for members in by_inode.values() for pid in members})
    who = ", ".join(f"{processes.program(pid)} (process {pid})" for pid in pids)
    return f"Its port {port} is taken by {who or 'another process'}."
