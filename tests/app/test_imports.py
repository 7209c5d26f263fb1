# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports among the backend's files run in one direction, also those inside of functions and for types only."""

from __future__ import annotations

import ast
import typing as t

from tests.support.backend_env import PATCHES

#: Each floor may import those above it in this list.
FLOORS = (
    "app.core.websocket_manager",
    "app.wheels_ops.websocket.asgi",
    "app.wheels_ops.websocket.addresses",
    "app.wheels_ops.websocket.session",
    "app.wheels_ops.websocket.poll",
    "app.wheels_ops.websocket.guard",
)


def modules() -> t.Dict[str, ast.Module]:
    """The syntax tree of each file, by the name under which the backend imports it."""
    trees = {}
    for path in PATCHES.rglob("*.py"):
        parts = path.relative_to(PATCHES.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def imports() -> t.Dict[str, t.Set[str]]:
    """Which of our files each file imports."""
    trees = modules()
    graph: t.Dict[str, t.Set[str]] = {}
    for module, tree in trees.items():
        names: t.Set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = module.split(".")[: -node.level] if node.level else []  # no package has imports of its own
                source = ".".join([*above, *([node.module] if node.module else [])])
                names |= {source} | {f"{source}.{alias.name}" for alias in node.names}
        graph[module] = names & set(trees)
    return graph


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = imports()
    assert len(graph) > 10
    while graph:  # takes away what imports nothing that is still there
        leaves = {module for module, names in graph.items() if not names & set(graph)}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: names for module, names in graph.items() if module not in leaves}


def test_the_websocket_files_import_downwards_only() -> None:
    graph = imports()
    rooms = {name for name in graph if "websocket" in name} - {"app.wheels_ops.websocket"}
    assert rooms == set(FLOORS)
    for place, module in enumerate(FLOORS):
        assert graph[module] & rooms <= set(FLOORS[:place]), module
    assert not {name for name in graph["app.core.websocket_manager"] if name.startswith("app.wheels_ops")}
