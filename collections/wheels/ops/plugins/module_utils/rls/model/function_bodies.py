# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the body of a function reads, writes and calls, as far as that can be told without running it."""

from __future__ import annotations

import functools
import re
import typing as t
from dataclasses import dataclass, field

from . import tree
from .catalog import Catalog, Function, split_search_path

#: The statement's own table is used in this way; every other one is read.
_WRITES = {"InsertStmt": "insert_returning", "UpdateStmt": "update", "DeleteStmt": "delete", "MergeStmt": "update"}


_LOCKS = "it locks rows"

#: Characters of a PL/pgSQL function that are parsed at most: the parser takes about 30 ms for 1,000 of them, so that
#: this is three seconds.
LONGEST = 100_000


@dataclass
class Body:
    """``relations``: (oid, variant); ``functions``: oids; ``unknown``: why it is not all that could happen.

    ``effects``: what it does besides reading and writing tables; ``calls``: the names (schema, name) that its calls can
    mean; ``oids``: every function that it calls, PostgreSQL's own as well, where the body is kept parsed.
    """

    relations: t.Set[t.Tuple[int, str]] = field(default_factory=set)
    functions: t.Set[int] = field(default_factory=set)
    unknown: t.List[str] = field(default_factory=list)
    effects: t.List[str] = field(default_factory=list)
    calls: t.Set[t.Tuple[str, str]] = field(default_factory=set)
    oids: t.FrozenSet[int] = frozenset()

    @property
    def writes(self) -> bool:
        return any(variant != "select" for _ignored, variant in self.relations)


class Bodies:
    """The bodies of a catalog's functions, each looked at once."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._known: t.Dict[int, Body] = {}
        self._relations = {(relation.schema, relation.name): relation.oid for relation in catalog.relations.values()}
        self._functions: t.Dict[t.Tuple[str, str], t.List[Function]] = {}
        for function in catalog.functions.values():
            self._functions.setdefault((function.schema, function.name), []).append(function)

    def of(self, function: Function) -> Body:
        if function.oid not in self._known:
            self._known[function.oid] = self._read(function)
        return self._known[function.oid]

    def _read(self, function: Function) -> Body:
        body = Body()
        if function.body is not None:
            variant = "select" if not re.search(r"\{QUERY :commandType [2345]", function.body.tree) else "update"
            body.relations = {(oid, variant) for oid in function.body.relations}
            body.functions = {oid for oid in function.body.functions if oid in self.catalog.functions}
            body.oids = function.body.functions
            body.effects += [_LOCKS] if function.body.locks_rows else []
            return body
        path = split_search_path(function.search_path) if function.search_path is not None else self.catalog.search_path
        try:
            statements = self._plpgsql(function, body) if function.language == "plpgsql" else _parsed(function.source)
        except ValueError as error:
            body.unknown.append(str(error))
            return body
        for statement in statements:
            self._collect(statement, path, body)
        return body

    def _plpgsql(self, function: Function, body: Body) -> t.Sequence[tree.Node]:
        if function.definition is None:
            return ()
        statements, unknown, effects = _plpgsql_statements(function.definition)
        body.unknown += unknown
        body.effects += effects
        return statements

    def _collect(self, statement: tree.Node, path: t.Sequence[str], body: Body) -> None:
        if tree.kind(statement) not in ("SelectStmt", *_WRITES):
            body.effects.append("it runs a statement that is no query")
        for query in tree.of_type(statement, "SelectStmt"):
            body.effects += [_LOCKS] if query.lockingClause else []
            body.effects += ["it creates a table"] if query.intoClause else []
        cte_names = {cte.ctename for cte in tree.of_type(statement, "CommonTableExpr")}
        targets = {
            id(node.relation): _WRITES[tree.kind(node)] for node in tree.walk(statement) if tree.kind(node) in _WRITES
        }
        for item in tree.of_type(statement, "RangeVar"):
            if item.schemaname is None and item.relname in cte_names:
                continue
            schemas = [item.schemaname] if item.schemaname else path
            relation = next(
                (
                    self._relations[schema, item.relname]
                    for schema in schemas
                    if (schema, item.relname) in self._relations
                ),
                None,
            )
            if relation is not None:
                body.relations.add((relation, targets.get(id(item), "select")))
        for call in tree.of_type(statement, "FuncCall"):
            name = tree.function_name(call)
            schemas = [name[-2]] if len(name) > 1 else path
            body.calls |= {(schema, name[-1]) for schema in (schemas if len(name) > 1 else ("pg_catalog", *path))}
            for schema in schemas:
                candidates = self._functions.get((schema, name[-1]), [])
                fitting = [candidate for candidate in candidates if candidate.arguments >= len(call.args or ())]
                if fitting:
                    body.functions |= {candidate.oid for candidate in fitting}
                    break


@functools.lru_cache(maxsize=512)
def _plpgsql_statements(definition: str) -> t.Tuple[t.Tuple[tree.Node, ...], t.Tuple[str, ...], t.Tuple[str, ...]]:
    """(statements, why they may not be all, effects of others) of a PL/pgSQL function. Kept for the text, as an audit, its plan and the
    verification read the same functions; nobody changes the trees.

    Raises ``ValueError`` where the text cannot be parsed or is longer than ``LONGEST``.
    """
    from pglast import parse_plpgsql
    from pglast.parser import ParseError

    if len(definition) > LONGEST:
        raise ValueError(f"its text has {len(definition):,} characters, more than the {LONGEST:,} that are read")
    try:
        trees = parse_plpgsql(definition)
    except (ParseError, ValueError) as error:
        raise ValueError(f"its body cannot be parsed: {error}") from error
    statements: t.List[tree.Node] = []
    unknown: t.List[str] = []
    effects: t.List[str] = []
    todo: t.List[t.Any] = [trees]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            for key, value in item.items():
                if key in ("PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors") or (key == "dynquery" and value):
                    unknown.append("it runs dynamic SQL (EXECUTE)")
                if key in ("PLpgSQL_stmt_commit", "PLpgSQL_stmt_rollback"):
                    effects.append("it ends transactions")
                if key == "PLpgSQL_expr" and isinstance(value, dict) and "query" in value:
                    statements += _parsed(str(value["query"]), loose=True)
                todo.append(value)
    return tuple(statements), tuple(unknown), tuple(effects)


def _parsed(source: str, *, loose: bool = False) -> t.List[tree.Node]:
    """The statements of a text; ``loose`` also takes the expressions and assignments of PL/pgSQL."""
    from pglast import parse_sql
    from pglast.parser import ParseError

    attempts = [source]
    if loose:
        assignment = re.match(r"\s*[\w\".\[\]]+\s*:?=\s*(?!=)(.*)", source, re.S)
        attempts += [f"SELECT {source}"] + ([f"SELECT {assignment[1]}"] if assignment else [])
    error: t.Optional[Exception] = None
    for attempt in attempts:
        try:
            return [raw.stmt for raw in parse_sql(attempt)]
        except ParseError as failed:
            error = error or failed
    raise ValueError(f"a statement cannot be parsed: {error}")
