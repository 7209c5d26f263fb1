# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a matrix, read back by an XML parser."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from wheels_ops.rls.repair.matrix import Cell, Matrix
from wheels_ops.rls.repair.matrix_page import page


def test_page_escapes_names() -> None:
    odd = 'public."<b>&\'"'
    made = Matrix(odd, {"<i>": ("<i>",)}, [odd], {("<i>", odd, "SELECT"): Cell("works", (1, 1))})
    text = page(made)
    body = ElementTree.fromstring(text[text.index("<main>") : text.index("</main>") + len("</main>")])
    assert [one.text for one in body.iter("caption")] == [odd]
    assert "works, 1 row" in "".join(body.itertext())


def test_only_what_differs_is_marked_as_changed() -> None:
    """With its state before and after; the rest has one."""
    keys = [("anon", "public.a", command) for command in ("SELECT", "INSERT")]
    made = Matrix("shop", {"anon": ("anon",)}, ["public.a"], {key: Cell("works") for key in keys})
    made.after = {keys[0]: Cell("no row"), keys[1]: Cell("works")}
    text = page(made)
    body = ElementTree.fromstring(text[text.index("<main>") : text.index("</main>") + len("</main>")])
    cells = {cell.get("data-command"): cell for cell in body.iter("td")}
    assert cells["SELECT"].get("class") == "changed" and "".join(cells["SELECT"].itertext()) == "works → no row"
    assert cells["INSERT"].get("class") is None and "".join(cells["INSERT"].itertext()) == "works"
    assert "1 commands that worked before" in "".join(body.itertext())
