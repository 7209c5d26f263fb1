# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a role will see through a predicted catalog, asked before any policy is changed.

The query that counts the visible rows is written out as row-level security will: the table itself, read through a
temporary view of the session that no policy binds, with the new policies as its condition. Inside the condition every
table is read by the role itself, under its present policies; where a new policy would apply there as well, the
reference is written out in the same way. What cannot be written out is ``Unmeasured``, with the reason.
"""

from __future__ import annotations

import typing as t

from ...core.results import OpsError
from ..audit import oracle
from ..audit.simulate import INVOKER, Simulator
from ..model import tree
from ..model.catalog import Catalog, Expression, Relation
from ..model.function_bodies import Bodies
from ..model.roles import RoleClass
from ..model.transactions import Cursor, rows

#: Characters of a query; above it a chain of policies is written out too often.
LONGEST = 200_000


class Unmeasured(Exception):
    """Why the rows that a role will see cannot be counted before the change."""


class Refused(Exception):
    """The access will fail, with this SQLSTATE."""


class Visibility:
    """The queries for one predicted catalog. ``touched``: the tables (oids) whose policies change; ``schema``: where
    the views are made (see ``prediction.place``).
    """

    def __init__(
        self, cursor: Cursor, now: Catalog, touched: t.Collection[int], schema: str, bodies: t.Optional[Bodies] = None
    ) -> None:
        self.cursor = cursor
        self.catalog = now
        self.touched = frozenset(touched)
        self.schema = schema
        self.simulator = Simulator(now)
        self.bodies = bodies or Bodies(now)
        self.me = next(role.oid for role in now.roles.values() if role.name == now.current_user)
        self._views: t.Dict[int, str] = {}
        self._columns: t.Dict[int, t.List[str]] = {}
        self._rights: t.Dict[t.Tuple[str, int], t.Tuple[bool, bool]] = {}
        self._depends: t.Dict[t.Tuple[int, int, int], bool] = {}
        self._schemas: t.Dict[t.Tuple[str, str], bool] = {}

    def source(self, who: RoleClass, relation: Relation) -> t.Tuple[str, str]:
        """(what stands behind FROM and WHERE, the alias of the relation in it). A table's rows have its ``tableoid``
        and ``ctid``. Raises ``Unmeasured`` or ``Refused``.
        """
        if self.simulator.check(who, relation, "select"):
            raise Refused(oracle.RECURSION)
        if relation.kind == "v":
            return f"({self._view_query(who, relation)}) AS v", "v"
        if not self._privileges(who, relation)[0]:
            raise Refused("42501")
        alias = tree.quote(relation.name)
        text = f"{self._view(relation)} AS {alias} WHERE {self._condition(who, relation)}"
        if len(text) > LONGEST:
            raise Unmeasured("its policies lead through too many others")
        return text, alias

    # -- what is written out -------------------------------------------------------------------------------------------

    def _view(self, relation: Relation) -> str:
        """A view of the session with all rows of a table, which every role may read."""
        if relation.oid not in self._views:
            if relation.kind not in ("r", "p"):
                raise Unmeasured(f"{relation.short} is not an ordinary table")
            if not self.simulator.exempt(relation, self.me):
                raise Unmeasured(f"row-level security of {relation.short} binds the session")
            self.cursor.execute("select has_table_privilege(%s::oid, 'SELECT')", (relation.oid,))
            if not self.cursor.fetchone()[0]:
                raise Unmeasured(f"the session may not read {relation.short}")
            view = f"{self.schema}.wheels_ops_rows_{relation.oid}"
            self.cursor.execute(
                f"create view {view} as select r.tableoid, r.ctid, r.* from {relation.qualified} as r;"
                f" grant select on {view} to public"
            )
            self._views[relation.oid] = view
        return self._views[relation.oid]

    def _condition(self, who: RoleClass, relation: Relation) -> str:
        """The new policies for SELECT as PostgreSQL joins them."""
        if self.simulator.exempt(relation, who.oid):
            return "true"
        texts: t.Dict[bool, t.List[str]] = {True: [], False: []}
        for use in self.simulator.applied(relation, who.oid, "select")[0]:
            if use.policy.using is not None:
                texts[use.policy.permissive].append(self._expression(who, relation, use.policy.using))
        permissive = " OR ".join(f"({text})" for text in texts[True]) or "false"
        return " AND ".join([f"({permissive})", *(f"({text})" for text in texts[False])])

    def _expression(self, who: RoleClass, relation: Relation, expression: Expression) -> str:
        self._check_functions(who.oid, expression.functions, set())
        holder = tree.parse(expression.text)
        if any(tree.names(column) == (relation.name, "*") for column in tree.of_type(holder, "ColumnRef")):
            raise Unmeasured("a policy takes its whole row, which has another type here")
        self._require_schemas(who, holder)
        if self._substitute(who, holder):
            return self._show(holder.val)
        return expression.text

    def _view_query(self, who: RoleClass, relation: Relation) -> str:
        """The query of a view that reads with its caller's rights; its owner's policies are not the role's."""
        if not self._privileges(who, relation)[0]:
            raise Refused("42501")
        if not relation.invoker:
            raise Unmeasured(f"{relation.short} reads with its owner's rights")
        if relation.query is not None:
            self._check_functions(who.oid, relation.query.functions, set())
        self.cursor.execute("select pg_catalog.pg_get_viewdef(%s::oid)", (relation.oid,))
        text = self.cursor.fetchone()[0].rstrip("; \n")
        holder = tree.parse(f"({text})")  # a scalar sub-select, so that its root can be printed
        self._require_schemas(who, holder)
        if not self._substitute(who, holder):
            return text
        shown = self._show(holder.val)
        return shown[1:-1] if shown.startswith("(") else shown

    def _substitute(self, who: RoleClass, holder: tree.Node) -> bool:
        """Writes out every reference below which a policy changes; whether there was one."""
        named = {cte.ctename for cte in tree.of_type(holder, "CommonTableExpr")}
        changed = False
        for item in list(tree.of_type(holder, "RangeVar")):
            relation = self.catalog.by_name(item.schemaname, item.relname) if item.schemaname else None
            if relation is None or (not item.schemaname and item.relname in named):
                continue
            if not self._depends_on_change(who, relation):
                continue
            if any(True for locked in tree.of_type(holder, "LockingClause")):
                raise Unmeasured("a policy locks rows")
            if not item.inh:
                raise Unmeasured("a policy reads ONLY a table")
            if any(tree.names(column)[-1] == "*" for column in tree.of_type(holder, "ColumnRef")):
                raise Unmeasured("a policy reads a whole row")
            columns, any_column = self._privileges(who, relation)
            if not any_column:
                raise Refused("42501")
            if not columns:
                raise Unmeasured(f"{who.name} may read some columns of {relation.short} only")
            tree.replace(holder, item, self._reference(who, relation, item))
            changed = True
        return changed

    def _reference(self, who: RoleClass, relation: Relation, item: tree.Node) -> tree.Node:
        if relation.kind == "v":
            query = self._view_query(who, relation)
        else:
            names = ", ".join(self._column_names(relation))
            alias = tree.quote(relation.name)
            query = f"SELECT {names} FROM {self._view(relation)} AS {alias} WHERE {self._condition(who, relation)}"
        if len(query) > LONGEST:
            raise Unmeasured("its policies lead through too many others")
        inner = tree.parse_statement(f"SELECT FROM ({query}) AS a").fromClause[0]
        inner.alias.aliasname = item.alias.aliasname if item.alias is not None else item.relname
        inner.alias.colnames = item.alias.colnames if item.alias is not None else None
        return inner

    def _show(self, node: tree.Node) -> str:
        try:
            return tree.show(node)
        except OpsError as error:
            raise Unmeasured("a policy's expression cannot be printed") from error

    # -- what is known of roles, tables and functions ------------------------------------------------------------------

    def _depends_on_change(self, who: RoleClass, relation: Relation) -> bool:
        """Whether a policy that changes applies when the role reads a relation."""
        key = (who.oid, relation.oid, INVOKER)
        if key not in self._depends:
            reached = self.simulator.reached(who, relation, "select", set())
            self._depends[key] = (relation.oid in self.touched and not self.simulator.exempt(relation, who.oid)) or any(
                use.policy.relation in self.touched for use, dummy in reached
            )
        return self._depends[key]

    def _check_functions(self, session: int, functions: t.Iterable[int], seen: t.Set[t.Tuple[int, int]]) -> None:
        """A function's own queries cannot be written out: it must read nothing whose policies change."""
        for oid in functions:
            function = self.catalog.functions.get(oid)
            if function is None:
                continue
            runs_as = function.owner if function.definer else session
            if (oid, runs_as) in seen:
                continue
            seen.add((oid, runs_as))
            role = self.catalog.roles.get(runs_as)
            if role is None or role.superuser or role.bypass:
                continue
            body = self.bodies.of(function)
            if body.unknown:
                raise Unmeasured(f"what {function.qualified} reads cannot be told")
            for target in sorted({oid for oid, variant in body.relations}):
                self._check_read(runs_as, target, function.qualified)
            self._check_functions(runs_as, body.functions, seen)

    def _check_read(self, role: int, target: int, name: str) -> None:
        """No policy that changes may apply when the role reads the relation ``target``."""
        todo, seen = [(target, role)], set()
        while todo:
            oid, user = todo.pop()
            relation = self.catalog.relations.get(oid)
            if relation is None or (oid, user) in seen:
                continue
            seen.add((oid, user))
            if oid in self.touched and not self.simulator.exempt(relation, user):
                raise Unmeasured(f"{name} reads {relation.short}")
            below = relation.owner if relation.kind == "v" and not relation.invoker else user
            todo += [(one, below) for one in relation.references()]

    def _privileges(self, who: RoleClass, relation: Relation) -> t.Tuple[bool, bool]:
        """Whether the role may read the whole relation, and any column of it."""
        key = (who.name, relation.oid)
        if key not in self._rights:
            self.cursor.execute(
                "select has_table_privilege(%s::name, %s::oid, 'SELECT'),"
                " has_any_column_privilege(%s::name, %s::oid, 'SELECT')",
                (who.name, relation.oid, who.name, relation.oid),
            )
            self._rights[key] = self.cursor.fetchone()
        return self._rights[key]

    def _column_names(self, relation: Relation) -> t.List[str]:
        if relation.oid not in self._columns:
            found = rows(
                self.cursor,
                "select quote_ident(attname) as name from pg_catalog.pg_attribute where attrelid = %(oid)s::oid"
                " and attnum > 0 and not attisdropped order by attnum",
                {"oid": relation.oid},
            )
            self._columns[relation.oid] = [row["name"] for row in found]
        return self._columns[relation.oid]

    def _require_schemas(self, who: RoleClass, holder: tree.Node) -> None:
        """A policy has its objects bound; a query that names them needs the schemas, which this transaction gives."""
        named: t.Set[str] = set()
        for node in tree.walk(holder):
            kind = tree.kind(node)
            parts: t.Sequence[t.Any] = ()
            if kind == "RangeVar" and node.schemaname:
                named.add(node.schemaname)
            elif kind == "FuncCall":
                parts = node.funcname
            elif kind == "TypeName":
                parts = node.names or ()
            elif kind == "A_Expr":
                parts = node.name or ()
            if len(parts) > 1:
                named.add(parts[0].sval)
        for schema in sorted(named - who.schemas - {"pg_catalog"}):
            if not self._open(who, schema):
                raise Unmeasured(f"{who.name} may not look into the schema {schema}")

    def _open(self, who: RoleClass, schema: str) -> bool:
        import psycopg2

        key = (who.name, schema)
        if key not in self._schemas:
            self.cursor.execute("savepoint wheels_ops_schema")
            try:
                self.cursor.execute(f"grant usage on schema {tree.quote(schema)} to {tree.quote(who.name)}")
            except psycopg2.errors.InsufficientPrivilege:
                self.cursor.execute("rollback to savepoint wheels_ops_schema")
            self.cursor.execute("release savepoint wheels_ops_schema")
            self.cursor.execute("select has_schema_privilege(%s::name, %s, 'USAGE')", (who.name, schema))
            self._schemas[key] = bool(self.cursor.fetchone()[0])
        return self._schemas[key]
