# SPDX-License-Identifier: GPL-3.0-or-later
"""The marked block in somebody else's file: in, out, and nothing else touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wheels_ops.core.results import OpsError
from wheels_ops.host import marked_blocks

LINES = ["from app.x import install", "", "install(app)"]
MAIN = 'app = 1\n\n# start by hand\nif __name__ == "__main__":\n    print(app)\n'


def test_block_goes_before_the_main_guard_and_its_comment() -> None:
    text = marked_blocks.insert(MAIN, LINES, path="main.py")
    assert text.index("install(app)") < text.index("# start by hand") < text.index("__main__")
    compile(text, "main.py", "exec")


def test_block_goes_to_the_end_without_a_guard() -> None:
    text = marked_blocks.insert("app = 1\n", LINES, path="main.py")
    assert text == f"app = 1\n\n\n{marked_blocks.BEGIN}\n" + "\n".join(LINES) + f"\n{marked_blocks.END}\n"


def test_a_second_insert_changes_nothing_and_other_lines_replace_it() -> None:
    once = marked_blocks.insert(MAIN, LINES, path="main.py")
    assert marked_blocks.insert(once, LINES, path="main.py") == once
    other = marked_blocks.insert(once, ["pass"], path="main.py")
    assert other.count(marked_blocks.BEGIN) == 1
    assert "install(app)" not in other


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends_stay(newline: str) -> None:
    text = marked_blocks.insert(MAIN.replace("\n", newline), LINES, path="main.py")
    assert text.count("\n") == text.count(newline)


@given(
    st.lists(
        st.sampled_from(["app = 1", "x = 2", "def f():\n    return 1", "", "# note", 'text = """\n\n"""']),
        min_size=1,
        max_size=8,
    )
)
def test_what_remove_leaves_means_the_same(parts: list[str]) -> None:
    import ast

    text = "\n".join(parts) + "\n"
    taken = marked_blocks.remove(marked_blocks.insert(text, LINES, path="x"))
    assert ast.dump(ast.parse(taken)) == ast.dump(ast.parse(text))


def test_an_unfinished_block_and_broken_python_are_refused() -> None:
    with pytest.raises(OpsError, match="does not end"):
        marked_blocks.remove(f"a\n{marked_blocks.BEGIN}\n")
    with pytest.raises(OpsError, match="not valid Python"):
        marked_blocks.insert("def (:\n", LINES, path="main.py")
