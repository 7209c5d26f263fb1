# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A marked block of ours in a Python file that belongs to somebody else."""

from __future__ import annotations

import ast
import re
import typing as t

from ..core.results import OpsError

BEGIN = "# BEGIN wheels.ops: managed block, taken out again by the rollback playbook"
END = "# END wheels.ops"
#: Any number of blank lines before the block are ours as well: ``insert`` puts them there.
_BLOCK = re.compile(r"(?:\r?\n)*" + re.escape(BEGIN) + r".*?" + re.escape(END) + r"\r?\n(?:\r?\n)*", re.DOTALL)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def has(text: str) -> bool:
    return BEGIN in text


def remove(text: str) -> str:
    """The text without our block. The rest keeps every byte that is not a blank line around the block."""
    if not has(text):
        return text
    newline = _newline(text)
    match = _BLOCK.search(text)
    if match is None:
        raise OpsError(
            "The managed block begins but does not end.",
            hint=f"Put the line {END!r} back, or take the block out by hand.",
        )
    head, tail = text[: match.start()], text[match.end() :]
    return head + newline + (newline * 2 + tail if tail else "")


def insert(text: str, lines: t.Sequence[str], *, path: str) -> str:
    """The text with our block: before the ``if __name__ == "__main__"`` at its end where there is one, else at its end.

    An older block of ours is replaced. Raises ``OpsError`` where the text is not valid Python.
    """
    text = remove(text)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise OpsError(
            f"{path} is not valid Python (line {error.lineno}: {error.msg}).",
            hint="Repair it before it can be patched.",
        ) from error
    newline = _newline(text)
    block = newline.join([BEGIN, *lines, END]) + newline
    rows = text.splitlines(keepends=True)
    guard = next((node.lineno - 1 for node in tree.body if _is_main_guard(node)), None)
    if guard is None:
        return text.rstrip("\r\n") + newline * 3 + block
    # Comments right above the guard belong to it.
    while guard and rows[guard - 1].lstrip().startswith("#"):
        guard -= 1
    return "".join(rows[:guard]).rstrip("\r\n") + newline * 3 + block + newline * 2 + "".join(rows[guard:])


def _is_main_guard(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and isinstance(node.test.left, ast.Name)
        and node.test.left.id == "__name__"
    )
