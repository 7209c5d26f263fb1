# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Parsing, printing and walking SQL expressions with pglast, PostgreSQL's own parser.

PostgreSQL prints a policy (``pg_get_expr`` with an empty ``search_path``) with every relation and function qualified,
every column inside a sub-select qualified by its alias, and every alias different from those around it. What is said
here about names relies on it.
"""

from __future__ import annotations

import functools
import typing as t

from ...core.results import OpsError

Node = t.Any


def quote(name: str) -> str:
    """An identifier, always quoted: no list of reserved words to be wrong about."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A string constant that means the same whatever ``standard_conforming_strings`` is set to."""
    escaped = value.replace("'", "''")
    return "'" + escaped + "'" if "\\" not in value else " E'" + escaped.replace("\\", "\\\\") + "'"


def parse(text: str) -> Node:
    """The tree of one expression. The holder is returned, so that the root itself can be replaced: ``holder.val``."""
    from pglast import parse_sql

    statement: Node = parse_sql(f"SELECT {text}")[0].stmt
    return statement.targetList[0]


def parse_statement(text: str) -> Node:
    """The tree of one statement."""
    from pglast import parse_sql

    return parse_sql(text)[0].stmt


def show(node: Node) -> str:
    """The SQL of a tree. Raises ``OpsError`` unless parsing it gives the very same tree."""
    from pglast import ast
    from pglast.parser import ParseError
    from pglast.stream import RawStream

    statement = ast.SelectStmt(targetList=(ast.ResTarget(val=node),))
    text = RawStream()(statement)
    if not text.upper().startswith("SELECT "):
        raise OpsError("The SQL printer gave something else than an expression.")
    printed = str(text[len("SELECT ") :])
    try:
        same = parse(printed).val == node
    except ParseError:  # TABLESAMPLE with an alias, say
        same = False
    if not same:
        raise OpsError("The SQL printer does not print this expression faithfully.", expression=printed)
    return printed


@functools.lru_cache(maxsize=4096)
def faithful(text: str) -> bool:
    """Whether an expression survives parsing and printing unchanged."""
    try:
        show(parse(text).val)
    except OpsError:
        return False
    return True


@functools.cache
def _node_class() -> type:
    """Imported when it is first needed: pglast is heavy, and not there on every host."""
    from pglast import ast

    kind: type = ast.Node
    return kind


def is_node(value: object) -> bool:
    return isinstance(value, _node_class())


def children(node: Node) -> t.Iterator[Node]:
    """The nodes directly below, through lists and tuples."""
    below = (_node_class(), tuple, list)
    if isinstance(node, (tuple, list)):
        for item in node:
            if isinstance(item, below):
                yield item
    else:
        for name in node:
            value = getattr(node, name)
            if isinstance(value, below):
                yield value


def walk(node: Node) -> t.Iterator[Node]:
    """Every node of a tree, the root first."""
    todo = [node]
    one = _node_class()
    while todo:
        current = todo.pop()
        if isinstance(current, one):
            yield current
        todo += reversed(list(children(current)))


def of_type(node: Node, name: str) -> t.Iterator[Node]:
    """Every node of the class ``name`` (``ColumnRef``, ``SelectStmt``...)."""
    return (item for item in walk(node) if type(item).__name__ == name)


def kind(node: Node) -> str:
    return type(node).__name__


def replace(root: Node, old: Node, new: Node) -> bool:
    """Puts ``new`` where ``old`` (the same object) stands below ``root``; whether it was found."""
    for parent in walk(root):
        for name in parent:
            value = getattr(parent, name)
            if value is old:
                setattr(parent, name, new)
                return True
            if isinstance(value, (tuple, list)):
                swapped, changed = _swap(value, old, new)
                if changed:
                    setattr(parent, name, swapped)
                    return True
    return False


def _swap(items: t.Sequence[t.Any], old: Node, new: Node) -> t.Tuple[t.Tuple[t.Any, ...], bool]:
    changed = False
    result: t.List[t.Any] = []
    for item in items:
        if item is old:
            result.append(new)
            changed = True
        elif isinstance(item, (tuple, list)):
            inner, hit = _swap(item, old, new)
            changed = changed or hit
            result.append(inner)
        else:
            result.append(item)
    return tuple(result), changed


def names(column: Node) -> t.Tuple[str, ...]:
    """The parts of a ``ColumnRef``; ``*`` for a star."""
    return tuple(part.sval if kind(part) == "String" else "*" for part in column.fields)


def function_name(call: Node) -> t.Tuple[str, ...]:
    return tuple(part.sval for part in call.funcname)


def conjuncts(node: t.Optional[Node]) -> t.List[Node]:
    """The parts of a condition that are joined by AND."""
    if node is None:
        return []
    if kind(node) == "BoolExpr" and int(node.boolop) == 0:
        return [part for arg in node.args for part in conjuncts(arg)]
    return [node]


def conjunction(parts: t.Sequence[Node]) -> t.Optional[Node]:
    """Several conditions joined by AND; None for none."""
    from pglast import ast, enums

    if not parts:
        return None
    return parts[0] if len(parts) == 1 else ast.BoolExpr(boolop=enums.BoolExprType.AND_EXPR, args=tuple(parts))


def equality(node: Node) -> t.Optional[t.Tuple[Node, Node]]:
    """Both sides of ``a = b`` with the operator of ``pg_catalog``, else None."""
    if kind(node) == "A_Expr" and int(node.kind) == 0 and [part.sval for part in node.name] == ["="]:
        return node.lexpr, node.rexpr
    return None


def uncast(node: Node) -> Node:
    """What stands under casts."""
    while kind(node) == "TypeCast":
        node = node.arg
    return node


def positive(root: Node) -> t.Iterator[Node]:
    """The parts of a condition that only AND and OR separate from its root.

    There NULL and false are the same to a policy.
    """
    if kind(root) == "BoolExpr" and int(root.boolop) in (0, 1):
        for part in root.args:
            yield from positive(part)
    else:
        yield root
