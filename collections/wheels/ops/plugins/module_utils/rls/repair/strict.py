# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The strict reading of recursive policies: their least fixpoint, to tell whether a repair grants more than that.

Nobody sees anything at first; then whoever the policies admit, reading only what is visible so far, sees a row, until
nothing is added. A row that is visible only because it makes itself visible is not in it. The repair reads cut
references in full, so that it gives the same rows or more. The policies' original texts are evaluated here by the
session itself, each table replaced by what is visible of it.
"""

from __future__ import annotations

import typing as t

from ...core.results import OpsError
from ..audit.simulate import Simulator
from ..model import tree
from ..model.catalog import Catalog, Policy, Relation
from ..model.column_details import IDENTITY_BOUND
from ..model.roles import RoleClass
from ..model.transactions import Cursor, set_local
from .compare import User, identify

#: Tables with more rows are not evaluated: the fixpoint is for people to judge by, not worth minutes.
MAX_ROWS = 5_000
_ROUNDS = 50
_ROLE_NAMES = ("SVFOP_CURRENT_ROLE", "SVFOP_CURRENT_USER", "SVFOP_USER")


class NotComputed(Exception):
    """Why there is no strict reading to compare with."""


class StrictReading:
    """The least fixpoints of one catalog, role by role and user by user."""

    def __init__(self, cursor: Cursor, catalog: Catalog) -> None:
        self.cursor = cursor
        self.catalog = catalog
        self.simulator = Simulator(catalog)
        self.me = next(role.oid for role in catalog.roles.values() if role.name == catalog.current_user)
        self._known: t.Dict[t.Tuple[str, User], t.Dict[int, t.Set[str]]] = {}
        self._small: t.Dict[int, bool] = {}
        self._texts: t.Dict[t.Tuple[int, str, t.FrozenSet[int]], t.Tuple[str, t.List[int]]] = {}

    def visible(self, who: RoleClass, user: User, relation: Relation) -> int:
        """How many rows of ``relation`` the strict reading shows; ``NotComputed`` with the reason where that cannot be
        told.
        """
        cache = self._known.setdefault((who.name, user), {})
        if relation.oid not in cache:
            cache.update(self._fixpoint(who, user, self._below(who, relation)))
        return len(cache[relation.oid])

    def admitted(self, who: RoleClass, user: User, relation: Relation, text: str) -> t.Tuple[int, int]:
        """(rows of ``relation`` for which the condition ``text`` is true, all its rows), every table read in full;
        ``NotComputed`` where the session may not, or must not, evaluate it.
        """
        import psycopg2

        for table in [relation, *self._named(text)]:
            if table.kind not in ("r", "p") or not self.simulator.exempt(table, self.me):
                raise NotComputed(f"{table.short} cannot be read in full by the session")
            if not self._fits(table):
                raise NotComputed(f"{table.short} has more than {MAX_ROWS} rows")
        for call in tree.of_type(tree.parse(text), "FuncCall"):
            called = tree.function_name(call)
            if called[:-1] not in ((), ("pg_catalog",)) and ".".join(called) not in self.catalog.identity.values():
                raise NotComputed(f"it calls {'.'.join(called)}()")
        condition = self._substituted(who, text, frozenset())[0].replace("%%", "%")
        self.cursor.execute("savepoint wheels_ops_strict")
        try:
            set_local(self.cursor, **identify(who, user))
            self.cursor.execute(f"SELECT count(*) FILTER (WHERE {condition}), count(*) FROM {relation.qualified}")
            admitted, total = self.cursor.fetchone()
        except psycopg2.errors.QueryCanceled:
            raise
        except psycopg2.Error as error:
            raise NotComputed(f"it fails with {error.pgcode}") from error
        finally:
            if not self.cursor.connection.closed:
                self.cursor.execute("rollback to savepoint wheels_ops_strict")
                self.cursor.execute("release savepoint wheels_ops_strict")
        return int(admitted), int(total)

    def _named(self, text: str) -> t.List[Relation]:
        items = tree.of_type(tree.parse(text), "RangeVar")
        named = [self.catalog.by_name(item.schemaname, item.relname) for item in items if item.schemaname]
        return [relation for relation in named if relation is not None]

    def _below(self, who: RoleClass, relation: Relation) -> t.List[Relation]:
        """Every table under row-level security that the policies read, directly or not."""
        result: t.List[Relation] = []
        todo = [relation]
        while todo:
            current = todo.pop()
            if current in result:
                continue
            if current.kind != "r":
                raise NotComputed(f"{current.short} is not an ordinary table")
            if not self.simulator.exempt(current, self.me):
                raise NotComputed(f"row-level security of {current.short} binds the session")
            if not self._fits(current):
                raise NotComputed(f"{current.short} has more than {MAX_ROWS} rows")
            result.append(current)
            for policy in self._policies(who, current):
                if policy.using is None:
                    continue
                if any(
                    oid in self.catalog.functions and oid not in self.catalog.identity for oid in policy.using.functions
                ):
                    raise NotComputed("a policy calls a function")
                for oid in policy.using.relations:
                    target = self.catalog.relations.get(oid)
                    if target is not None and target.kind == "v":
                        raise NotComputed("a policy reads a view")
                    if target is not None and not self.simulator.exempt(target, who.oid):
                        todo.append(target)
        return result

    def _fits(self, relation: Relation) -> bool:
        if relation.oid not in self._small:
            self.cursor.execute(
                f"select count(*) <= {MAX_ROWS} from (select from {relation.qualified} limit {MAX_ROWS + 1}) s"
            )
            self._small[relation.oid] = bool(self.cursor.fetchone()[0])
        return self._small[relation.oid]

    def _policies(self, who: RoleClass, relation: Relation) -> t.List[Policy]:
        return [use.policy for use in self.simulator.applied(relation, who.oid, "select")[0]]

    def _fixpoint(self, who: RoleClass, user: User, tables: t.List[Relation]) -> t.Dict[int, t.Set[str]]:
        for table in tables:
            for policy in self._policies(who, table):
                if policy.using is not None and policy.using.has_sublink and not monotone(policy.using.text):
                    raise NotComputed(
                        "a policy denies something (NOT, an aggregate, an outer join): there is no least fixpoint"
                    )
        queries = {table.oid: self._query(who, table, {member.oid for member in tables}) for table in tables}
        visible: t.Dict[int, t.Set[str]] = {table.oid: set() for table in tables}
        set_local(self.cursor, **identify(who, user))
        for _ignored in range(_ROUNDS):
            now = {}
            for oid, (text, order) in queries.items():
                self.cursor.execute(text, [sorted(visible[target]) for target in order])
                now[oid] = {row for (row,) in self.cursor.fetchall()}
            if now == visible:
                return visible
            visible = now
        raise NotComputed("it does not come to an end")

    def _query(self, who: RoleClass, table: Relation, bound: t.Set[int]) -> t.Tuple[str, t.List[int]]:
        """(query for the row ids that the policies admit, tables whose visible row ids are its
        parameters, in order).
        """
        order: t.List[int] = []
        policies = self._policies(who, table)
        texts: t.Dict[bool, t.List[str]] = {True: [], False: []}
        for policy in policies:
            if policy.using is not None:
                text, parameters = self._substituted(who, policy.using.text, frozenset(bound))
                texts[policy.permissive].append(text)
                order += parameters
        permissive = " OR ".join(f"({text})" for text in texts[True]) or "false"
        where = " AND ".join([f"({permissive})", *(f"({text})" for text in texts[False])])
        alias = tree.quote(table.name)
        # The texts have their per cent signs doubled already, for the driver.
        return f"SELECT {alias}.ctid::text FROM {table.qualified} WHERE ".replace("%", "%%") + where, order

    def _substituted(self, who: RoleClass, text: str, bound: t.FrozenSet[int]) -> t.Tuple[str, t.List[int]]:
        """The text, the same for every user of a role, with a parameter for each table of ``bound``; those in order."""
        if (who.oid, text, bound) not in self._texts:
            order: t.List[int] = []
            self._texts[who.oid, text, bound] = (self._substitute(who, text, bound, order), order)
        return self._texts[who.oid, text, bound]

    def _substitute(self, who: RoleClass, text: str, bound: t.FrozenSet[int], order: t.List[int]) -> str:
        if not tree.faithful(text):
            raise NotComputed("a policy's expression cannot be printed")
        holder = tree.parse(text)
        _speak_as(who, holder)
        marks: t.List[t.Tuple[str, int]] = []
        for item in list(tree.of_type(holder, "RangeVar")):
            relation = self.catalog.by_name(item.schemaname, item.relname) if item.schemaname else None
            if relation is None or relation.oid not in bound:
                continue
            mark = f"wheels_ops_mark_{len(marks)}_"
            only = "" if item.inh else "ONLY "
            inner = tree.parse_statement(
                f"SELECT FROM (SELECT * FROM {only}{relation.qualified} AS wheels_ops_row WHERE wheels_ops_row.ctid ="
                f" ANY ({mark})) AS a"
            ).fromClause[0]
            inner.alias.aliasname = item.alias.aliasname if item.alias is not None else item.relname
            inner.alias.colnames = item.alias.colnames if item.alias is not None else None
            tree.replace(holder, item, inner)
            marks.append((mark, relation.oid))
        try:
            printed = tree.show(holder.val).replace("%", "%%")
        except OpsError as error:  # what TABLESAMPLE can be applied to is not what stands there now
            raise NotComputed("a policy's expression cannot be printed") from error
        for _ignored, (mark, oid) in sorted((printed.index(mark), (mark, oid)) for mark, oid in marks):
            printed = printed.replace(mark, "%s::tid[]")
            order.append(oid)
        return printed


def _speak_as(who: RoleClass, holder: tree.Node) -> None:
    """Puts the role in the place of what would name the session, which evaluates the text."""
    from pglast import enums

    for node in list(tree.walk(holder.val)):
        kind = tree.kind(node)
        if kind == "SQLValueFunction" and enums.SQLValueFunctionOp(int(node.op)).name in _ROLE_NAMES:
            role = tree.parse(f"{tree.literal(who.name)}::pg_catalog.name").val
            if holder.val is node:
                holder.val = role
            else:
                tree.replace(holder.val, node, role)
        elif kind == "FuncCall" and tree.function_name(node)[-1] in IDENTITY_BOUND:
            raise NotComputed(f"a policy asks for {tree.function_name(node)[-1]}()")


def monotone(text: str) -> bool:
    """Whether more visible rows can only make the expression admit more rows, as far as its form tells."""
    holder = tree.parse(text)
    for node in tree.walk(holder.val):
        kind = tree.kind(node)
        links = any(True for _ignored in tree.of_type(node, "SubLink")) and kind != "SubLink"
        if kind == "BoolExpr" and int(node.boolop) == 2 and links:
            return False
        if kind in ("CaseExpr", "NullTest", "BooleanTest", "CoalesceExpr") and links:
            return False
        if kind == "SubLink":
            read = any(True for _ignored in tree.of_type(node.subselect, "RangeVar"))
            if int(node.subLinkType) in (1, 4) and read:
                return False
        if kind == "JoinExpr" and int(node.jointype) != 0:
            return False
        if kind == "SelectStmt" and (
            node.groupClause or node.havingClause or node.limitCount or node.limitOffset or int(node.op) in (2, 3)
        ):
            return False
    return True


Strict = t.Dict[t.Tuple[str, User, str], t.Union[int, str]]


def read(cursor: Cursor, catalog: Catalog, cases: t.Iterable[t.Tuple[RoleClass, User, Relation]]) -> Strict:
    """For each role, user and table the rows of the strict reading, or why they are not known."""
    import psycopg2

    reading = StrictReading(cursor, catalog)
    result: Strict = {}
    for who, user, relation in cases:
        cursor.execute("savepoint wheels_ops_strict")
        try:
            result[who.name, user, relation.qualified] = reading.visible(who, user, relation)
        except NotComputed as error:
            result[who.name, user, relation.qualified] = str(error)
        except psycopg2.errors.QueryCanceled:
            raise
        except psycopg2.Error as error:
            result[who.name, user, relation.qualified] = f"it fails with {error.pgcode}"
        # The user's claims go with it: whoever is measured next must not inherit them.
        cursor.execute("rollback to savepoint wheels_ops_strict")
        cursor.execute("release savepoint wheels_ops_strict")
    return result


def report(strict: Strict, visible: t.Mapping[t.Tuple[str, User, str], int]) -> t.List[t.Dict[str, t.Any]]:
    """For each table that failed: what the users of the sample see after the repair, and how much of it goes beyond the
    strict reading.
    """
    tables: t.Dict[str, t.Dict[str, t.Any]] = {}
    for key, count in visible.items():
        entry = tables.setdefault(key[2], {"table": key[2], "visible": 0, "strict": 0, "reason": ""})
        entry["visible"] += count
        reading = strict.get(key, "it was not asked for")
        if isinstance(reading, str):
            entry["reason"] = entry["reason"] or reading
        else:
            entry["strict"] += reading
    for entry in tables.values():
        if entry["reason"]:
            entry.update(
                strict=None,
                extra=None,
                message=f"{entry['table']}: not compared with the strict reading: {entry['reason']}.",
            )
        else:
            entry["extra"] = entry["visible"] - entry["strict"]
            more = f"{entry['extra']} of {entry['visible']} visible rows go beyond the strict reading"
            entry["message"] = (
                f"{entry['table']}: {more if entry['extra'] else 'grants nothing beyond the strict reading'}."
            )
    return [tables[name] for name in sorted(tables)]
