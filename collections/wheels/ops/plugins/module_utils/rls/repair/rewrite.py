# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Replaces table references in a policy by functions that read the table without its row-level security.

The reference (``FROM s a``) is replaced, not the sub-select around it: everything else in the sub-select keeps the
caller's rights and its own row-level security, and no row is lost or doubled. What a condition says about ``a`` alone,
and the comparison with the outer row, moves into the function, so that it gives back no more than the policy needs.
"""

from __future__ import annotations

import hashlib
import typing as t
from dataclasses import dataclass, field

from ..model import tree, wrap
from ..model.catalog import Catalog, Relation
from ..model.column_details import SYSTEM_COLUMNS, Column, Details
from ..model.tree import Node
from .conditions import Conditions, Move, Types, alias_of, columns_of, from_items

#: The alias of the table inside a helper: one for all, so that equal helpers have equal text.
_ALIAS = "r"


class CannotRewrite(Exception):
    """Why a reference cannot be replaced, in words for the person who then has to."""


@dataclass(frozen=True)
class Helper:
    """A function to be created. ``bound`` tells what keeps it from giving back the whole table: "caller", "arguments",
    "boolean" or "" (nothing).

    ``reads``: the columns of ``relation`` that its owner must be allowed to read, none for all of them.
    """

    relation: int
    relation_name: str
    label: str
    arguments: t.Tuple[str, ...]
    returns: str
    body: str
    bound: str
    reads: t.Tuple[str, ...]
    identity: t.FrozenSet[str] = frozenset()
    handed: t.Tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Named after its content: the same content has the same name in every run, so that it is made once."""
        content = "\0".join((self.relation_name, *self.arguments, self.returns, self.body))
        ending = f"_{self.label}_{hashlib.sha256(content.encode()).hexdigest()[:10]}"
        stem = self.relation_name.rpartition(".")[2].strip('"').replace('""', '"')
        return stem.encode()[: 63 - len(ending)].decode(errors="ignore") + ending

    def signature(self, schema: str) -> str:
        return f"{tree.quote(schema)}.{tree.quote(self.name)}({', '.join(self.arguments)})"

    def create(self, schema: str, *, atomic: bool) -> str:
        """``BEGIN ATOMIC`` binds the names when the function is made, as a policy does; PostgreSQL 13 knows only a
        string.
        """
        head = (
            f"CREATE FUNCTION {self.signature(schema)}\n  RETURNS {self.returns}\n  LANGUAGE sql STABLE SECURITY"
            " DEFINER\n  SET search_path = ''\n"
        )
        if atomic:
            return f"{head}BEGIN ATOMIC\n  {self.body};\nEND"
        return f"{head}AS {tree.literal(self.body)}"


class Creatable(t.Protocol):
    """What a plan needs to know of a function that it creates: a ``Helper``, or the copy of a function."""

    @property
    def name(self) -> str: ...
    @property
    def relation_name(self) -> str: ...
    @property
    def bound(self) -> str: ...
    @property
    def handed(self) -> t.Tuple[str, ...]: ...
    def signature(self, schema: str) -> str: ...
    def create(self, schema: str, *, atomic: bool) -> str: ...


@dataclass
class Rewritten:
    """The new text of an expression, with the helpers that it calls."""

    text: str
    helpers: t.List[Creatable] = field(default_factory=list)
    forms: t.List[str] = field(default_factory=list)

    @property
    def weight(self) -> int:
        """The smaller, the less a cut gives away and costs: 1 bound to the caller, 3 to the row, 10 not at all; for
        each occurrence.
        """
        return sum(
            {"caller": 1, "arguments": 3, "boolean": 3, "function": 4}.get(helper.bound, 10) for helper in self.helpers
        )

    @property
    def unbounded(self) -> bool:
        return any(not helper.bound for helper in self.helpers)


@dataclass
class _Place:
    """One reference: ``query`` is the SELECT whose FROM holds ``item``; ``outer`` the aliases that are visible from
    further out.
    """

    query: Node
    item: Node
    own: t.Dict[str, t.Optional[int]]
    outer: t.Dict[str, t.Optional[int]]


def rewrite(
    text: str,
    owner: Relation,
    targets: t.Collection[int],
    catalog: Catalog,
    details: Details,
    schema: str,
    copies: t.Optional[t.Mapping[int, Creatable]] = None,
    types: t.Optional[Types] = None,
) -> Rewritten:
    """The expression ``text`` of a policy on ``owner`` with every reference to ``targets`` (oids) replaced by a
    function in ``schema``, and every call of a function in ``copies`` (by oid) by a call of its copy there. Without
    ``types`` nothing is handed to a function but columns.

    Raises ``CannotRewrite`` where that would not keep the meaning.
    """
    if not tree.faithful(text):
        raise CannotRewrite("the expression does not survive being parsed and printed")
    holder = tree.parse(text)
    result = Rewritten(text)
    work = _Rewriter(holder, owner, catalog, details, schema, result, Conditions(details, types))
    repointed = work.repoint(copies or {})
    for place, target in list(work.places(targets)):
        work.replace(place, target)
        repointed = True
    if not repointed:
        raise CannotRewrite("the reference is not in the expression's text")
    work.tidy()
    result.text = tree.show(holder.val)
    return result


@dataclass(frozen=True)
class _Argument:
    """``by_row``: it comes from the outer row."""

    node: Node
    type: str
    by_row: bool

    def once(self) -> Node:
        """The node, so that it is not evaluated again for each row."""
        if self.by_row or tree.kind(self.node) in ("SubLink", "SQLValueFunction"):
            return self.node
        return wrap.wrapped(self.node)


class _Rewriter:
    def __init__(
        self,
        holder: Node,
        owner: Relation,
        catalog: Catalog,
        details: Details,
        schema: str,
        result: Rewritten,
        conditions: Conditions,
    ) -> None:
        self.conditions = conditions
        self.holder = holder
        self.owner = owner
        self.catalog = catalog
        self.details = details
        self.schema = schema
        self.result = result

    # -- finding -------------------------------------------------------------------------------------------------------

    def places(self, targets: t.Collection[int]) -> t.Iterator[t.Tuple[_Place, Relation]]:
        outermost: t.Dict[str, t.Optional[int]] = {self.owner.name: self.owner.oid}
        yield from self._visit(self.holder.val, outermost, frozenset(targets))

    def _visit(
        self, node: Node, outer: t.Dict[str, t.Optional[int]], targets: t.FrozenSet[int]
    ) -> t.Iterator[t.Tuple[_Place, Relation]]:
        if tree.kind(node) == "SelectStmt":
            items = list(from_items(node.fromClause or ()))
            own = {alias_of(item): self._oid(item) for item in items if alias_of(item)}
            for item in items:
                target = self._oid(item)
                if target is not None and target in targets:
                    if tree.kind(item) != "RangeVar":
                        raise CannotRewrite("the table is read with TABLESAMPLE")
                    yield _Place(node, item, own, outer), self.catalog.relations[target]
            outer = {**outer, **own}
        for child in tree.children(node):
            yield from self._visit(child, outer, targets)

    def _oid(self, item: Node) -> t.Optional[int]:
        if tree.kind(item) == "RangeTableSample":
            item = item.relation
        if tree.kind(item) != "RangeVar" or not item.schemaname:
            return None
        relation = self.catalog.by_name(item.schemaname, item.relname)
        return relation.oid if relation else None

    def repoint(self, copies: t.Mapping[int, Creatable]) -> bool:
        """Calls the copies instead of the functions."""
        from pglast import ast

        repointed = False
        for oid, copy in copies.items():
            function = self.catalog.functions[oid]
            named = [
                call
                for call in tree.of_type(self.holder, "FuncCall")
                if tree.function_name(call) == (function.schema, function.name)
            ]
            calls = [call for call in named if function.accepts(len(call.args or ()))]
            if not calls:
                raise CannotRewrite(f"the call of {function.qualified} is not in the expression's text")
            for call in calls:
                if copy.handed and any(tree.kind(given) == "NamedArgExpr" for given in call.args or ()):
                    raise CannotRewrite(f"{function.qualified} is called with names of arguments")
                call.funcname = (ast.String(sval=self.schema), ast.String(sval=copy.name))
                call.args = (*(call.args or ()), *(tree.parse(text).val for text in copy.handed)) or None
            self.result.helpers.append(copy)
            self.result.forms.append("copy of the function")
            repointed = True
        return repointed

    # -- one reference -------------------------------------------------------------------------------------------------

    def replace(self, place: _Place, target: Relation) -> None:
        query, item = place.query, place.item
        alias = alias_of(item)
        if query.lockingClause:
            raise CannotRewrite("the sub-select locks rows")
        columns = self.details.columns.get(target.oid, {})
        renamed = bool(item.alias and item.alias.colnames)
        moves: t.List[Move] = []
        arguments: t.List[_Argument] = []
        bound = ""
        if not renamed:
            sites = list(_sites(query, item))
            places = [(holder, name, part) for holder, name in sites for part in tree.conjuncts(getattr(holder, name))]
            movable = [
                (holder, name, move)
                for holder, name, part in places
                for move in [self.conditions.move(part, alias)]
                if move is not None
            ]
            bounds = {move.bound for _holder, _name, move in movable}
            bound = "caller" if "caller" in bounds else "arguments" if "arguments" in bounds else ""
            if not bound:
                # Per row then, not once: only where nothing else keeps the function from the whole table.
                for holder, name, part in places:
                    if self._correlated(part, alias, place.outer):
                        movable.append((holder, name, Move(part)))
                        bound = "arguments"
            for holder, name, move in movable:
                remaining = [other for other in tree.conjuncts(getattr(holder, name)) if other is not move.part]
                # A join needs a condition; a WHERE does not.
                setattr(
                    holder, name, tree.conjunction(remaining) or (None if holder is query else tree.parse("true").val)
                )
                moves.append(move)
        whole, used = self._used(query, alias, columns, renamed=renamed)
        inside = {name[1] for move in moves for name in columns_of(move.part) if len(name) == 2 and name[0] == alias}
        conditions = [self._inside(move, alias, place.outer, arguments) for move in moves]
        exists = self._is_bare_exists(query, item)
        source = ("" if item.inh else "ONLY ") + target.qualified + f" {_ALIAS}"
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        if exists:
            returns, select, bound = "boolean", f"SELECT EXISTS (SELECT FROM {source}{where})", bound or "boolean"
        elif whole:
            returns, select = f"SETOF {target.qualified}", f"SELECT {_ALIAS}.* FROM {source}{where}"
        elif used:
            returns = "TABLE (" + ", ".join(f"{tree.quote(column.name)} {column.type}" for column in used) + ")"
            select = (
                "SELECT "
                + ", ".join(f"{_ALIAS}.{tree.quote(column.name)}" for column in used)
                + f" FROM {source}{where}"
            )
        else:
            returns, select = "TABLE (hit boolean)", f"SELECT true FROM {source}{where}"
        names = {column.name for column in used} | inside
        called = [call for text in conditions for call in tree.of_type(tree.parse(text), "FuncCall")]
        identity = frozenset(".".join(tree.function_name(call)) for call in called if wrap.is_identity(call))
        helper = Helper(
            relation=target.oid,
            relation_name=target.qualified,
            label="is" if exists else "scan",
            arguments=tuple(argument.type for argument in arguments),
            returns=returns,
            body=select,
            bound=bound,
            reads=() if whole else tuple(sorted(names)),
            identity=identity,
        )
        self.result.helpers.append(helper)
        call = tree.parse(f"{tree.quote(self.schema)}.{tree.quote(helper.name)}()").val
        by_row = any(argument.by_row for argument in arguments)
        call.args = tuple(argument.once() if by_row else argument.node for argument in arguments) or None
        if exists:
            self._put_boolean(query, call, by_row)
        else:
            self._put_source(query, item, alias, call)

    def _put_source(self, query: Node, item: Node, alias: str, call: Node) -> None:
        from pglast import ast

        source = tree.parse_statement(f"SELECT FROM {tree.quote(self.schema)}.f() AS {tree.quote(alias)}").fromClause[0]
        source.functions = ((call, None),)
        if item.alias is not None:
            source.alias = ast.Alias(aliasname=item.alias.aliasname, colnames=item.alias.colnames)
        tree.replace(query, item, source)
        self.result.forms.append("function in FROM")

    def _put_boolean(self, query: Node, call: Node, correlated: bool) -> None:
        link = next(node for node in tree.of_type(self.holder, "SubLink") if node.subselect is query)
        new = call if correlated else wrap.wrapped(call)
        if self.holder.val is link:
            self.holder.val = new
        else:
            tree.replace(self.holder.val, link, new)
        self.result.forms.append("boolean per row" if correlated else "boolean once")

    def _is_bare_exists(self, query: Node, item: Node) -> bool:
        """Whether nothing is left of ``EXISTS (SELECT ... FROM item)`` but the question whether there is a row."""
        only = len(query.fromClause or ()) == 1 and query.fromClause[0] is item
        rest = ("whereClause", "groupClause", "havingClause", "withClause", "limitCount", "limitOffset", "windowClause")
        if not only or int(query.op) != 0 or any(getattr(query, name) for name in rest):
            return False
        if any(tree.kind(node) in ("FuncCall", "GroupingFunc") for node in tree.walk(query.targetList or ())):
            return False  # an aggregate gives a row even where there is none
        return any(
            int(node.subLinkType) == 0 and node.subselect is query for node in tree.of_type(self.holder, "SubLink")
        )

    # -- conditions ----------------------------------------------------------------------------------------------------

    def _correlated(self, part: Node, alias: str, outer: t.Dict[str, t.Optional[int]]) -> bool:
        """``a.column = outer.column``, where the outer column's type is known; casts on both sides are
        carried along.
        """
        sides = tree.equality(part)
        if sides is None or not self.conditions.portable(part):
            return False
        for mine, other in (sides, sides[::-1]):
            mine, other = tree.uncast(mine), tree.uncast(other)
            if tree.kind(mine) == tree.kind(other) == "ColumnRef":
                left, right = tree.names(mine), tree.names(other)
                if (
                    len(left) == len(right) == 2
                    and left[0] == alias
                    and left[1] not in SYSTEM_COLUMNS
                    and self._outer_type(right, outer)
                ):
                    return True
        return False

    def _outer_type(self, name: t.Tuple[str, ...], outer: t.Dict[str, t.Optional[int]]) -> t.Optional[str]:
        relation = outer.get(name[0])
        column = self.details.columns.get(relation, {}).get(name[1]) if relation else None
        return column.type if column else None

    def _inside(self, move: Move, alias: str, outer: t.Dict[str, t.Optional[int]], arguments: t.List[_Argument]) -> str:
        """The text of a condition inside the function; values and outer columns become parameters."""
        from pglast import ast

        holder = tree.parse("NULL")
        holder.val = move.part

        def put(old: Node, new: Node) -> None:
            if holder.val is old:
                holder.val = new
            else:
                tree.replace(holder.val, old, new)

        def parameter(argument: _Argument) -> Node:
            if argument not in arguments:
                arguments.append(argument)
            return ast.ParamRef(number=arguments.index(argument) + 1)

        for value in move.values:
            new = parameter(_Argument(value.node, value.type.name, by_row=False))
            if value.member:
                member = tree.parse("x = ANY (y)").val
                member.lexpr, member.rexpr = value.place.testexpr, new
                new = member
            put(value.place, new)
        for node in list(tree.of_type(holder.val, "ColumnRef")):
            name = tree.names(node)
            if name[0] == alias:
                node.fields = (ast.String(sval=_ALIAS), ast.String(sval=name[1]))
                continue
            kind = t.cast(str, self._outer_type(name, outer))
            put(node, parameter(_Argument(ast.ColumnRef(fields=node.fields), kind, by_row=True)))
        wrap.wrap(holder)
        return "(" + tree.show(holder.val) + ")"

    def _used(
        self, query: Node, alias: str, columns: t.Dict[str, Column], *, renamed: bool
    ) -> t.Tuple[bool, t.List[Column]]:
        """(is the whole row used, which columns are still used) by what is left of the query; ``renamed``: the columns
        have other names in it.
        """
        names: t.Set[str] = set()
        whole = renamed
        for name in columns_of(query):
            if name == (alias,) or name[:2] == (alias, "*"):
                whole = True
            elif name[0] == alias and len(name) >= 2:
                names.add(name[1])
            elif len(name) == 1 and name[0] in columns:
                names.add(name[0])  # a column merged by JOIN ... USING is printed without a table
        for join in tree.of_type(query, "JoinExpr"):
            names |= {word.sval for word in join.usingClause or () if word.sval in columns}
        if names & SYSTEM_COLUMNS - set(columns):
            raise CannotRewrite("a system column of the table is used")
        if whole:
            return True, []
        unknown = names - set(columns)
        if unknown:
            raise CannotRewrite(f"the column {', '.join(sorted(unknown))} is not one of the table")
        return False, sorted((columns[name] for name in names), key=lambda column: column.number)

    # -- faster forms --------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """``EXISTS (SELECT FROM f() a WHERE a.c = x)`` and ``x IN (SELECT a.c FROM f() a)`` become ``x = ANY
        (ARRAY(SELECT a.c FROM f() a))``.

        Only where NULL and false are the same, and where an index of the policy's table can use it; elsewhere IN, which
        PostgreSQL hashes.
        """
        for node in list(tree.positive(self.holder.val)):
            if tree.kind(node) != "SubLink" or not self._calls_helper(node):
                continue
            membership = self._membership(node)
            if membership is None:
                continue
            outside, query = membership
            indexed = tree.kind(outside) == "ColumnRef" and tree.names(outside)[-1] in self.details.leading.get(
                self.owner.oid, frozenset()
            )
            template = "x = ANY (ARRAY(SELECT 1))" if indexed else "x IN (SELECT 1)"
            new = tree.parse(template).val
            if indexed:
                new.lexpr, new.rexpr.subselect = outside, query
            else:
                new.testexpr, new.subselect = outside, query
            self.result.forms.append("array" if indexed else "in")
            if self.holder.val is node:
                self.holder.val = new
            else:
                tree.replace(self.holder.val, node, new)

    def _calls_helper(self, node: Node) -> bool:
        return any(tree.function_name(call)[0] == self.schema for call in tree.of_type(node, "FuncCall"))

    def _membership(self, node: Node) -> t.Optional[t.Tuple[Node, Node]]:
        """(outer expression, uncorrelated one-column query) of a sub-select that asks whether a value is in a set."""
        query = node.subselect
        inner = {
            alias_of(item)
            for select in tree.of_type(query, "SelectStmt")
            for item in from_items(select.fromClause or ())
        }

        def inside(part: Node) -> bool:
            return all(len(name) >= 2 and name[0] in inner for name in columns_of(part))

        if int(node.subLinkType) == 2:
            operator = [word.sval for word in node.operName or ()]
            if (
                operator in ([], ["="])
                and tree.kind(node.testexpr) != "RowExpr"
                and len(query.targetList or ()) == 1
                and inside(query)
            ):
                return node.testexpr, query
            return None
        single = len(query.fromClause or ()) == 1 and tree.kind(query.fromClause[0]) == "RangeFunction"
        rest = (
            "groupClause",
            "havingClause",
            "withClause",
            "limitCount",
            "limitOffset",
            "windowClause",
            "distinctClause",
        )
        if int(node.subLinkType) != 0 or not single or int(query.op) != 0 or any(getattr(query, name) for name in rest):
            return None
        if any(tree.kind(part) in ("FuncCall", "GroupingFunc") for part in tree.walk(query.targetList or ())):
            return None
        parts = tree.conjuncts(query.whereClause)
        crossing = [part for part in parts if not inside(part)]
        if (
            len(crossing) != 1
            or any(tree.kind(part) == "SubLink" for part in tree.walk(query.whereClause))
            or not inside(query.fromClause)
        ):
            return None
        sides = tree.equality(crossing[0])
        if sides is None:
            return None
        for mine, other in (sides, sides[::-1]):
            if (
                list(columns_of(mine))
                and inside(mine)
                and list(columns_of(other))
                and not any(name[0] in inner for name in columns_of(other))
            ):
                query.whereClause = tree.conjunction([part for part in parts if part is not crossing[0]])
                target = tree.parse("1")
                target.val = mine
                query.targetList = (target,)
                return other, query
        return None


def _sites(query: Node, item: Node) -> t.Iterator[t.Tuple[Node, str]]:
    """The conditions that a row of ``item`` must meet to have any effect: (node, field) of WHERE and of joins.

    Filtering the table by them beforehand gives the same result. That is so for a WHERE unless an outer join can fill
    the table's columns with NULL, and for a join's condition unless that join keeps rows of the table that do not meet
    it.
    """
    path: t.Optional[t.List[t.Tuple[Node, str]]] = None
    for start in query.fromClause or ():
        path = _path(start, item)
        if path is not None:
            break
    if path is None:
        return
    reducible = True
    # From the table outwards: an outer join that keeps rows of this side shields them from what lies outside only by
    # NULLs of the other.
    for join, side in reversed(path):
        kind = int(join.jointype)  # 0 inner, 1 left, 2 full, 3 right
        kept = (kind == 1 and side == "larg") or (kind == 3 and side == "rarg") or kind == 2
        nullable = (kind == 1 and side == "rarg") or (kind == 3 and side == "larg") or kind == 2
        if reducible and not kept and join.quals is not None:
            yield join, "quals"
        if nullable:
            reducible = False
    if reducible and int(query.op) == 0:
        yield query, "whereClause"


def _path(node: Node, item: Node) -> t.Optional[t.List[t.Tuple[Node, str]]]:
    """The joins from ``node`` down to ``item`` with the side on which it lies; None where it is not there."""
    if node is item:
        return []
    if tree.kind(node) == "JoinExpr":
        for side in ("larg", "rarg"):
            below = _path(getattr(node, side), item)
            if below is not None:
                return [(node, side), *below]
    return None
