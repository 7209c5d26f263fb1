# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which conditions of a sub-select may move into a function that runs with other rights, and what they bind it to.

A condition may move when everything in it means the same there and runs no code of users. What does not, and needs no
column of any table (``current_user``, a user's own function, a sub-select), is a *value*: the caller evaluates it, with
his own rights, and hands it to the function as an argument.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..model import tree, wrap
from ..model.catalog import AUTH_FUNCTIONS
from ..model.column_details import IDENTITY_BOUND, SYSTEM_COLUMNS, Details
from ..model.expression_types import ExpressionType
from ..model.tree import Node

_TIME = frozenset(
    f"SVFOP_{name}"
    for name in (
        "CURRENT_DATE",
        "CURRENT_TIME",
        "CURRENT_TIME_N",
        "CURRENT_TIMESTAMP",
        "CURRENT_TIMESTAMP_N",
        "LOCALTIME",
        "LOCALTIME_N",
        "LOCALTIMESTAMP",
        "LOCALTIMESTAMP_N",
    )
)
#: Expressions that can be handed over. Not CASE and COALESCE that hold columns: what they guard must not be evaluated
#: before it is needed.
_EXPRESSIONS = frozenset(
    """A_ArrayExpr A_Expr A_Indirection BoolExpr BooleanTest CaseExpr CoalesceExpr FuncCall MinMaxExpr NullTest
    SQLValueFunction SubLink TypeCast""".split()  # noqa: SIM905 - one name in a line each would hide the rest
)
_GUARDS = frozenset(("CaseExpr", "CoalesceExpr"))
#: They turn one value into another, so that a comparison of what they give is one of the column.
_FOLDING = frozenset(("lower", "upper", "btrim"))
_ANY, _SCALAR, _ARRAY = 2, 4, 6
#: They ask whether values are equal, whatever their order.
_COMPARISONS = frozenset(("=", "<>", "&&", "@>", "<@"))
#: Comparisons by which a row is one of the caller's: nothing is equal to, shared with or a key of an empty value.
_TIES = frozenset(("=", "&&", "?"))

#: The type of an expression's text; None where the server does not tell.
Types = t.Callable[[str], t.Optional[ExpressionType]]


@dataclass
class Value:
    """Something that the caller evaluates. ``place``: what gives way to the parameter; ``node``: what is handed over;
    ``member``: the parameter is an array, and ``place`` asks whether its left side is in it.
    """

    place: Node
    node: Node
    type: ExpressionType
    member: bool = False


@dataclass
class Move:
    """A condition that may move. ``bound``: what it ties the function to: "caller", "arguments" or "" (nothing)."""

    part: Node
    values: t.List[Value] = field(default_factory=list)
    bound: str = ""


class Conditions:
    """Decides about the conditions of one policy."""

    def __init__(self, details: Details, types: t.Optional[Types] = None) -> None:
        self.details = details
        self.types = types

    def move(self, part: Node, alias: str) -> t.Optional[Move]:
        """How a condition that says something about ``alias`` alone moves; None where it has to stay."""
        move = Move(part)
        if not self._visit(part, "", move.values):
            return None
        handed = {id(node) for value in move.values for node in tree.walk(value.place)}
        rest = [name for node, name in _column_nodes(part) if id(node) not in handed]
        tested = [name for value in move.values if value.member for name in columns_of(value.place.testexpr)]
        about = rest + tested
        if not about or not all(_of(name, alias) for name in about):
            return None
        move.bound = self._bound(part, alias, move.values)
        return move

    # -- what may move -------------------------------------------------------------------------------------------------

    def portable(self, part: Node) -> bool:
        """Only what ``pg_catalog`` offers to everybody, and the identity functions: functions of users would run with
        the owner's rights.
        """
        return all(self._portable(node) for node in tree.walk(part))

    def _portable(self, node: Node) -> bool:
        """One node, whatever stands below it."""
        from pglast import enums

        kind = tree.kind(node)
        if kind == "SubLink" and wrap.fromless(node) is None:
            return False
        if kind == "FuncCall":
            called = tree.function_name(node)
            auth = len(called) == 2 and called[0] == "auth" and called[1] in AUTH_FUNCTIONS
            builtin = called[:-1] in ((), ("pg_catalog",)) and called[-1] not in IDENTITY_BOUND
            return auth or (builtin and not self._volatile(called))
        if kind == "A_Expr":
            return len(node.name or ()) == 1
        if kind == "SQLValueFunction":
            return enums.SQLValueFunctionOp(int(node.op)).name in _TIME
        if kind == "TypeName":
            return self._plain_type(tuple(piece.sval for piece in node.names or ()))
        return kind not in ("ParamRef", "SetToDefault", "CurrentOfExpr", "NextValueExpr")

    def _plain_type(self, name: t.Tuple[str, ...]) -> bool:
        if name[:-1] in ((), ("pg_catalog",)):
            return not name[-1].startswith("reg")
        return name in self.details.plain_types

    def _volatile(self, called: t.Tuple[str, ...]) -> bool:
        return (called[-2] if len(called) > 1 else "pg_catalog", called[-1]) in self.details.volatile

    def _visit(self, node: Node, operator: str, values: t.List[Value]) -> bool:
        """Whether ``node`` may move once its ``values``, which are added, are handed over."""
        if self.portable(node):
            return True
        value = self._value(node, operator)
        if value is not None:
            values.append(value)
            return True
        kind = tree.kind(node)
        if not self._portable(node) or kind in _GUARDS:
            return False
        inner = [part.sval for part in node.name or ()][-1] if kind == "A_Expr" else operator
        if kind == "FuncCall":
            inner = tree.function_name(node)[-1]
        return all(self._visit(child, inner, values) for child in _nodes(node))

    def _value(self, node: Node, operator: str) -> t.Optional[Value]:
        if self.types is None or tree.kind(node) not in _EXPRESSIONS:
            return None
        if not self._evaluable(node):
            member = tree.kind(node) == "SubLink" and int(node.subLinkType) == _ANY
            return self._member(node) if member else None
        found = self.types(tree.show(node))
        # What is compared in an order of its own would be compared in the order of the parameter's type.
        if found is None or (found.collatable and operator not in _COMPARISONS):
            return None
        return Value(node, node, found)

    def _member(self, link: Node) -> t.Optional[Value]:
        """``column IN (SELECT ...)``, where the sub-select needs nothing of the row."""
        operator = [word.sval for word in link.operName or ()]
        if operator not in ([], ["="]) or len(link.subselect.targetList or ()) != 1 or self.types is None:
            return None
        if not self.portable(link.testexpr) or not list(columns_of(link.testexpr)):
            return None
        scalar, array = _sublink(link.subselect, _SCALAR), _sublink(link.subselect, _ARRAY)
        if not self._evaluable(scalar):
            return None
        element, whole = self.types(tree.show(scalar)), self.types(tree.show(array))
        # An array of arrays is one array of more dimensions, whose elements would be compared.
        if element is None or whole is None or element.name.endswith("]") or tree.kind(link.testexpr) == "RowExpr":
            return None
        return Value(link, array, whole, member=True)

    def _evaluable(self, node: Node) -> bool:
        """Whether it has the same value once for the whole statement as for each row: no column from outside, nothing
        VOLATILE, no rows locked.
        """
        inner = {
            alias_of(item)
            for select in tree.of_type(node, "SelectStmt")
            for item in from_items(select.fromClause or ())
        }
        if any(name[0] not in inner for name in columns_of(node)):
            return False
        for part in tree.walk(node):
            kind = tree.kind(part)
            if kind == "FuncCall" and self._volatile(tree.function_name(part)):
                return False
            if kind == "SelectStmt" and part.lockingClause:
                return False
            if kind in ("CollateClause", "ParamRef", "SetToDefault", "CurrentOfExpr", "NextValueExpr"):
                return False
        return True

    # -- what it is bound to -------------------------------------------------------------------------------------------

    def _bound(self, part: Node, alias: str, values: t.Sequence[Value]) -> str:
        """``a.column = <something of the caller>``, ``= ANY (...)``, in each branch of an OR."""
        kind = tree.kind(part)
        if any(value.member and value.place is part for value in values):
            return "arguments" if _is_column(part.testexpr, alias) else ""
        if kind == "BoolExpr" and int(part.boolop) in (0, 1):
            branches = [self._bound(arg, alias, values) for arg in part.args]
            if int(part.boolop) == 0:
                return "caller" if "caller" in branches else "arguments" if "arguments" in branches else ""
            if "" in branches:
                return ""
            return "arguments" if "arguments" in branches else "caller"
        operator = part.name[0].sval if kind == "A_Expr" and len(part.name) == 1 else ""
        if operator not in _TIES or int(part.kind) not in (0, 1):
            return ""
        sides = [(part.lexpr, part.rexpr), (part.rexpr, part.lexpr)]
        # The keys are those of the left side.
        for mine, other in sides[1:] if operator == "?" else sides:
            listed = tree.kind(mine) == "A_ArrayExpr" and (int(part.kind) == 1 or operator == "&&")
            elements = mine.elements if listed else (mine,)
            if elements and all(_is_column(element, alias) for element in elements):
                personal = self._personal(other, values)
                if personal:
                    return personal
        return ""

    @staticmethod
    def _personal(node: Node, values: t.Sequence[Value]) -> str:
        """Whether a side of a comparison comes from who asks."""
        handed = {id(inner) for value in values for inner in tree.walk(value.place)}
        below = list(tree.walk(node))
        if any(tree.kind(inner) == "ColumnRef" and id(inner) not in handed for inner in below):
            return ""
        places = {id(value.place) for value in values if value.type.name != "boolean" and _of_the_caller(value.node)}
        if any(id(inner) in places for inner in below):
            return "arguments"
        return "caller" if any(wrap.is_identity(inner) for inner in below) else ""


def columns_of(node: Node) -> t.Iterator[t.Tuple[str, ...]]:
    return (tree.names(column) for column in tree.of_type(node, "ColumnRef"))


def alias_of(item: Node) -> str:
    """The name by which an item of FROM is called; empty for none."""
    if tree.kind(item) == "RangeTableSample":
        item = item.relation
    if getattr(item, "alias", None) is not None:
        return str(item.alias.aliasname)
    return str(item.relname) if tree.kind(item) == "RangeVar" else ""


def from_items(items: t.Iterable[Node]) -> t.Iterator[Node]:
    """Everything in a FROM clause that has an alias of its own, through joins (and the joins that have one)."""
    for item in items:
        if tree.kind(item) == "JoinExpr":
            if item.alias is not None:
                yield item
            yield from from_items((item.larg, item.rarg))
        else:
            yield item


def _column_nodes(node: Node) -> t.Iterator[t.Tuple[Node, t.Tuple[str, ...]]]:
    return ((column, tree.names(column)) for column in tree.of_type(node, "ColumnRef"))


def _of(name: t.Tuple[str, ...], alias: str) -> bool:
    return len(name) == 2 and name[0] == alias and name[1] not in SYSTEM_COLUMNS | {"*"}


def _is_column(node: Node, alias: str) -> bool:
    node = tree.uncast(node)
    if tree.kind(node) == "FuncCall" and tree.function_name(node)[-1] in _FOLDING and len(node.args or ()) == 1:
        node = tree.uncast(node.args[0])
    return tree.kind(node) == "ColumnRef" and _of(tree.names(node), alias)


def _of_the_caller(node: Node) -> bool:
    """Whether a value can be another for another caller: a constant of a user's type cannot."""
    from pglast import enums

    for part in tree.walk(node):
        kind = tree.kind(part)
        if kind == "RangeVar" or wrap.is_identity(part):
            return True
        if kind == "SQLValueFunction" and enums.SQLValueFunctionOp(int(part.op)).name not in _TIME:
            return True
        if kind == "FuncCall":
            called = tree.function_name(part)
            if called[:-1] not in ((), ("pg_catalog",)) or called[-1] in IDENTITY_BOUND:
                return True
    return False


def _sublink(query: Node, kind: int) -> Node:
    link = tree.parse("ARRAY(SELECT 1)" if kind == _ARRAY else "(SELECT 1)").val
    link.subselect = query
    return link


def _nodes(node: Node) -> t.Iterator[Node]:
    """The nodes directly below, out of the lists in which they stand."""
    for child in tree.children(node):
        if isinstance(child, (tuple, list)):
            yield from _nodes(child)
        else:
            yield child
