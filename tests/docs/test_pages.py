# SPDX-License-Identifier: GPL-3.0-or-later
"""What pages say of tests and pictures is so."""

from __future__ import annotations

import ast
import re
import typing as t
import xml.etree.ElementTree

from tests import pictures
from tests.support import faulty_app
from tests.support.collection import REPOSITORY

DOCS = REPOSITORY / "docs"


def text(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def test_promises_name_tests_that_exist() -> None:
    functions = {
        name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", text("guarantees")))
    assert named and sorted(named - functions) == []


def test_fault_tables_are_complete() -> None:
    """Read, not imported: the module starts servers."""
    tree = ast.parse((REPOSITORY / "tests/app/wheels_ops/test_health_checks.py").read_text(encoding="utf-8"))
    faults = next(
        t.cast(ast.Dict, node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "FAULTS"
    )
    injected = [ast.literal_eval(key) for key in faults.keys if key is not None]
    table = re.findall(r"^\| ([^|]+) \| `[a-z]+:\w+` \|", text("faults"), re.MULTILINE)
    assert table == injected
    assert re.findall(r"^\| `(\w+)` \|", text("faults"), re.MULTILINE) == list(faulty_app.MODES)


def test_pictures_are_small_and_whole() -> None:
    files = sorted((DOCS / "pictures").iterdir())
    assert [path.name for path in files if path.stat().st_size > pictures.LARGEST] == []
    for path in files:
        if path.suffix == ".svg":
            xml.etree.ElementTree.parse(path)
            assert "url(http" not in path.read_text(encoding="utf-8"), "it loads something from elsewhere"
        else:
            assert path.read_bytes()[8:12] == b"WEBP", path.name


def test_each_picture_is_used() -> None:
    pages = [*DOCS.rglob("*.md"), REPOSITORY / "README.md"]
    shown = {name for page in pages for name in re.findall(r"pictures/([\w.-]+)", page.read_text(encoding="utf-8"))}
    assert {path.name for path in (DOCS / "pictures").iterdir()} == shown
