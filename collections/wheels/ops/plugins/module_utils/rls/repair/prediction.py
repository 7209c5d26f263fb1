# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The catalog as a plan will leave it, read before any table is locked.

PostgreSQL itself reads the new policies: on an empty temporary table with the name and the columns of the real one, in
a savepoint that is rolled back. A policy names its own table's columns by their numbers and everything else by oid, so
that its node tree and its text come out as they will on the real table, of which no more than an ACCESS SHARE lock is
taken.
"""

from __future__ import annotations

import typing as t

from ..model import catalog, policies, tree
from ..model.catalog import Catalog, Relation
from ..model.transactions import Cursor, Row, rows
from .plans import Plan

#: What is made in place of temporary tables where the session may not make those.
SCHEMA = "wheels_ops_prediction"


class Prediction(t.NamedTuple):
    """``catalog`` as it will be; ``inexact``: policies (oids in it) whose text PostgreSQL may print otherwise."""

    catalog: Catalog
    inexact: t.FrozenSet[int]


def place(cursor: Cursor) -> str:
    """The schema, quoted, for what is rolled back: that of temporary tables, or a new one."""
    cursor.execute("select has_database_privilege(current_database(), 'TEMP')")
    if cursor.fetchone()[0]:
        return "pg_temp"
    cursor.execute(f"create schema {tree.quote(SCHEMA)}; grant usage on schema {tree.quote(SCHEMA)} to public")
    return tree.quote(SCHEMA)


def predict(cursor: Cursor, plan: Plan, before: Catalog, schema: str) -> Prediction:
    """Reads the catalog with the plan's policies in place of the present ones, in the transaction of the caller, who
    has created the plan's functions in it. ``schema``: see ``place``. Raises ``psycopg2.Error`` for a policy that
    PostgreSQL does not accept.
    """
    gone: t.Set[int] = set()
    found: t.List[Row] = []
    inexact: t.Set[int] = set()
    for name, changes in sorted(_by_table(plan).items()):
        relation = before.by_name(*name)
        if relation is None:
            raise AssertionError("a defect: a table of the plan is missing")
        replaced = {policy.name for change in changes for policy in change.before}
        gone |= {policy.oid for policy in relation.policies if policy.name in replaced}
        pieces = [piece for change in changes for piece in change.after]
        made, vague = _read(cursor, relation, pieces, schema)
        comments = {
            piece.name: next((old.comment for old in change.before if old.comment), None)
            for change in changes
            for piece in change.after
        }
        for row in made:
            row["relation"], row["comment"] = relation.oid, comments[row["name"]]
            if vague:
                inexact.add(row["oid"])
        found += made
    replacement = catalog.Replacement(frozenset(gone), found)
    read = catalog.read(cursor, schemas=plan.schemas, roles=plan.roles, replacement=replacement)
    return Prediction(read, frozenset(inexact))


def _by_table(plan: Plan) -> t.Dict[t.Tuple[str, str], t.List[policies.Change]]:
    tables: t.Dict[t.Tuple[str, str], t.List[policies.Change]] = {}
    for change in plan.changes:
        tables.setdefault((change.relation.schema, change.relation.name), []).append(change)
    return tables


def _read(
    cursor: Cursor, relation: Relation, pieces: t.Sequence[policies.Piece], schema: str
) -> t.Tuple[t.List[Row], bool]:
    """The policies' rows, and whether their texts are the plan's instead of the server's."""
    import psycopg2

    table = f"{schema}.{tree.quote(relation.name)}"
    for vague in (False, True):
        cursor.execute("savepoint wheels_ops_prediction")
        try:
            cursor.execute(f"create table {table} (like {relation.qualified})")
            if vague:
                return _through_views(cursor, relation, pieces, table, schema), True
            cursor.execute(";\n".join(piece.create(table) for piece in pieces))
            return _rows(cursor, table), False
        except (
            psycopg2.errors.UndefinedFunction,
            psycopg2.errors.DatatypeMismatch,
            psycopg2.errors.CannotCoerce,
            psycopg2.errors.WrongObjectType,
        ):
            # The whole row as an argument has the type of its own table.
            if vague:
                raise
        finally:
            if not cursor.connection.closed:
                cursor.execute("rollback to savepoint wheels_ops_prediction")
                cursor.execute("release savepoint wheels_ops_prediction")
    raise AssertionError("the second way returns or raises")


def _rows(cursor: Cursor, table: str) -> t.List[Row]:
    cursor.execute(catalog.policies_as_json([table]))
    found: t.List[Row] = cursor.fetchone()[0]
    return found


def _oid(cursor: Cursor, table: str) -> int:
    cursor.execute("select %s::regclass::oid::bigint", (table,))
    return int(cursor.fetchone()[0])


def _through_views(
    cursor: Cursor, relation: Relation, pieces: t.Sequence[policies.Piece], table: str, schema: str
) -> t.List[Row]:
    """The rows of policies whose expressions only the real table can have: the expressions' trees are those of views
    on it.
    """
    originals = {
        expression.text: expression
        for policy in relation.policies
        for expression in (policy.using, policy.check)
        if expression is not None
    }
    for piece in pieces:
        cursor.execute(
            policies.Piece(piece.name, piece.command, piece.permissive, piece.roles, *_stubs(piece)).create(table)
        )
    found = _rows(cursor, table)
    by_name = {piece.name: piece for piece in pieces}
    for row in found:
        piece = by_name[row["name"]]
        for slot, text in (("using", piece.using), ("check", piece.check)):
            original = originals.get(text or "")
            row[f"{slot}_text"] = text
            if text is not None:
                row[f"{slot}_tree"] = original.tree if original else _tree(cursor, relation, text, schema)
    return found


def _stubs(piece: policies.Piece) -> t.Tuple[t.Optional[str], t.Optional[str]]:
    return piece.using and "true", piece.check and "true"


def _tree(cursor: Cursor, relation: Relation, text: str, schema: str) -> str:
    view = f"{schema}.wheels_ops_expression"
    cursor.execute(f"create view {view} as select ({text}) as expression from {relation.qualified}")
    oid = _oid(cursor, view)
    query = "select ev_action::text as tree from pg_catalog.pg_rewrite where ev_class = %(oid)s::oid"
    printed: str = rows(cursor, query, {"oid": oid})[0]["tree"]
    cursor.execute(f"drop view {view}")
    # The view's own range table names the view (before PostgreSQL 16) and the table that the policy is on.
    printed = printed.replace(f":rtekind 0 :relid {oid} ", ":rtekind 0 ")
    return printed.replace(f":rtekind 0 :relid {relation.oid} ", ":rtekind 0 ", 1)
