# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The WebSocket paths of a FastAPI application, read from its source; nothing of it is executed.

OpenAPI does not list them, and importing an application runs its code.
"""

from __future__ import annotations

import ast
import os
import typing as t
from dataclasses import dataclass, field

#: Files that are read at most, each with at most so many bytes.
_FILES, _LARGEST = 3000, 1 << 20
_SKIPPED = frozenset({"node_modules", "venv", ".venv", "site-packages", "tests", "__pycache__"})
#: A router or an application: its module and its name there.
Node = t.Tuple[str, str]


@dataclass
class _Source:
    """What one file says of routes."""

    module: str
    is_package: bool = False
    names: t.Dict[str, t.Tuple[str, str]] = field(default_factory=dict)
    prefixes: t.Dict[str, str] = field(default_factory=dict)
    applications: t.Set[str] = field(default_factory=set)
    sockets: t.List[t.Tuple[str, str]] = field(default_factory=list)
    includes: t.List[t.Tuple[str, str, str]] = field(default_factory=list)


def websocket_paths(directory: str, package: str = "app") -> t.List[str]:
    """Every path at which the application below ``directory/package`` mounts a WebSocket, sorted."""
    sources = {source.module: source for source in _sources(directory, package)}
    sockets: t.Dict[Node, t.List[str]] = {}
    children: t.Dict[Node, t.List[t.Tuple[Node, str]]] = {}
    for source in sources.values():
        for owner, path in source.sockets:
            sockets.setdefault(_node(sources, source, owner), []).append(path)
        for parent, child, prefix in source.includes:
            place = _node(sources, source, parent)
            children.setdefault(place, []).append((_node(sources, source, child), prefix))
    found: t.Set[str] = set()

    def visit(node: Node, prefix: str, path: t.Tuple[Node, ...]) -> None:
        if node in path:
            return
        own = prefix + (sources[node[0]].prefixes.get(node[1], "") if node[0] in sources else "")
        found.update(own + each for each in sockets.get(node, ()))
        for child, further in children.get(node, ()):
            visit(child, own + further, (*path, node))

    for source in sources.values():
        for name in source.applications:
            visit((source.module, name), "", ())
    return sorted(found)


def _sources(directory: str, package: str) -> t.Iterator[_Source]:
    count = 0
    for place, folders, files in os.walk(os.path.join(directory, package)):
        folders[:] = sorted(folder for folder in folders if folder not in _SKIPPED)
        for name in sorted(files):
            path = os.path.join(place, name)
            count += 1
            if not name.endswith(".py") or count > _FILES or not os.path.isfile(path):
                continue
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    tree = ast.parse(file.read(_LARGEST))
            except (OSError, SyntaxError, ValueError, RecursionError):
                continue
            parts = os.path.relpath(path, directory)[: -len(".py")].split(os.sep)
            is_package = parts[-1] == "__init__"
            yield _read(tree, ".".join(parts[:-1] if is_package else parts), is_package)


def _read(tree: ast.AST, module: str, is_package: bool) -> _Source:
    source = _Source(module, is_package)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                source.names[alias.asname or alias.name] = (origin, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    source.names[alias.asname] = (alias.name, "")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target, value in _assigned(node):
                kind = _dotted(value.func).rpartition(".")[2]
                if isinstance(target, ast.Name) and kind == "APIRouter":
                    source.prefixes[target.id] = _prefix(value)
                elif isinstance(target, ast.Name) and kind == "FastAPI":
                    source.applications.add(target.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for call in node.decorator_list:
                owner, _dot, verb = _dotted(call.func).rpartition(".") if isinstance(call, ast.Call) else ("", "", "")
                if isinstance(call, ast.Call) and verb in ("websocket", "websocket_route") and call.args:
                    source.sockets.append((owner, _text(call.args[0])))
        if isinstance(node, ast.Call) and _dotted(node.func).endswith(".include_router") and node.args:
            parent = _dotted(node.func).rpartition(".")[0]
            source.includes.append((parent, _dotted(node.args[0]), _prefix(node)))
    return source


def _assigned(node: t.Union[ast.Assign, ast.AnnAssign]) -> t.Iterator[t.Tuple[ast.AST, ast.Call]]:
    """The calls that an assignment stores, each with its target; also of ``app, router = FastAPI(), APIRouter()``."""
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        pairs: t.Iterable[t.Tuple[ast.AST, t.Optional[ast.AST]]] = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(target.elts, node.value.elts)
        for name, value in pairs:
            if isinstance(value, ast.Call):
                yield name, value


def _prefix(call: ast.Call) -> str:
    return next((_text(word.value) for word in call.keywords if word.arg == "prefix"), "")


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return node.id if isinstance(node, ast.Name) else ""


def _node(sources: t.Mapping[str, _Source], source: _Source, name: str, depth: int = 0) -> Node:
    """The router that a name in a file stands for, through the imports."""
    head, _dot, rest = name.partition(".")
    if head not in source.names or depth > 10:
        return source.module, name
    origin, original = source.names[head]
    module = f"{origin}.{original}".strip(".")
    if module in sources:
        return _node(sources, sources[module], rest, depth + 1)
    if origin in sources:
        return _node(sources, sources[origin], f"{original}.{rest}".strip("."), depth + 1)
    return source.module, name
