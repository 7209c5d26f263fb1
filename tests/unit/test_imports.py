# SPDX-License-Identifier: GPL-3.0-or-later
"""The library's rooms stand on floors, and imports point downward only (docs/architecture.md has the drawing)."""

from __future__ import annotations

import ast
import functools
import typing as t
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "collections/wheels/ops/plugins/module_utils"
#: Top to bottom; rooms of one floor do not import each other.
FLOORS: t.Tuple[t.FrozenSet[str], ...] = (
    frozenset({"standalone"}),
    frozenset({"remedies", "report"}),
    frozenset({"checks"}),
    frozenset({"rls", "services", "state"}),
    frozenset({"database", "health", "host"}),
    frozenset({"core"}),
)
#: Beside the rooms: the meeting point with Ansible, which modules alone import, the names of release 1.0, and the
#: command line. ``standalone`` names the latter so that Ansible sends it along with the module that installs the
#: library.
DOORS = frozenset({"__init__", "_ansible", "_moved", "command_line"})
#: Inside ``rls``, top to bottom.
RLS_FLOORS: t.Tuple[t.FrozenSet[str], ...] = (
    frozenset({"cli"}),
    frozenset({"module_api"}),
    frozenset({"repair"}),
    frozenset({"audit"}),
    frozenset({"model"}),
)


def name_of(path: Path) -> str:
    """The dotted name of a file below the library; a package's own file has the name of the package."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@functools.cache
def imports() -> t.Dict[str, t.FrozenSet[str]]:
    """What each file of the library imports of the library, also inside functions, by dotted names."""
    files = {name_of(path): path for path in sorted(LIBRARY.rglob("*.py"))}
    edges = {}
    for name, path in files.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        targets = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                deepest = ".".join([*base, alias.name])
                targets.add(deepest if deepest in files else ".".join(base) or "__init__")
        edges[name] = frozenset(targets - {name})
    return edges


def upward(floors: t.Sequence[t.FrozenSet[str]], inside: str = "") -> t.List[str]:
    """The imports that do not point to a lower floor, those within one room left out."""
    level = {room: index for index, rooms in enumerate(floors) for room in rooms}
    wrong = []
    for name, targets in imports().items():
        for target in targets:
            if inside and not (name.startswith(inside + ".") and target.startswith(inside + ".")):
                continue
            source_room, target_room = (
                each[len(inside) + 1 if inside else 0 :].split(".")[0] for each in (name, target)
            )
            if {source_room, target_room} & DOORS or source_room == target_room:
                continue
            if level[source_room] >= level[target_room]:
                wrong.append(f"{name} -> {target}")
    return sorted(wrong)


def test_rooms_all_known() -> None:
    """A new room needs its floor; a loose file needs a room."""
    rooms = {name.split(".")[0] for name in imports()} - DOORS
    assert rooms == set().union(*FLOORS)
    assert sorted(path.stem for path in LIBRARY.glob("*.py")) == ["__init__", "_ansible", "_moved", "command_line"]


def test_imports_point_downward() -> None:
    assert upward(FLOORS) == []


def test_imports_in_rls_point_downward() -> None:
    assert upward(RLS_FLOORS, inside="rls") == []


def test_imports_make_no_circle() -> None:
    """No file imports itself through others, whatever room they are in."""
    edges = imports()
    done: t.Set[str] = set()

    def visit(name: str, path: t.Tuple[str, ...]) -> None:
        if name in path:
            pytest.fail(f"circle: {' -> '.join([*path[path.index(name) :], name])}")
        if name in done:
            return
        for target in sorted(edges.get(name, ())):
            visit(target, (*path, name))
        done.add(name)

    for name in edges:
        visit(name, ())


def test_names_of_files_are_unique() -> None:
    """Two files of one name in two rooms send a reader to the wrong one."""
    stems: t.Dict[str, t.List[str]] = {}
    for path in LIBRARY.rglob("*.py"):
        if path.stem != "__init__":
            stems.setdefault(path.stem, []).append(str(path.relative_to(LIBRARY)))
    assert {stem: paths for stem, paths in stems.items() if len(paths) > 1} == {}


def test_ansible_is_known_to_one_file() -> None:
    knowing = [
        path.name
        for path in LIBRARY.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and any(
            each.split(".")[0].startswith("ansible")
            for each in (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            )
            if not (isinstance(node, ast.ImportFrom) and node.level)
        )
    ]
    assert set(knowing) == {"_ansible.py"}
