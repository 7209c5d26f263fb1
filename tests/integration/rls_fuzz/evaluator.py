# SPDX-License-Identifier: GPL-3.0-or-later
"""What a repaired schema must give, worked out without the repair, without row level security and without our catalog
code.

Definition (D2): an access that failed gives what the text of the ORIGINAL policies says, where a reference that was cut
reads the whole table and every other one reads what the caller sees of it. So a superuser, whom no policy touches,
evaluates the original texts in which each table's name is replaced: by the table itself, or by a temporary table with
the rows that the caller sees.
"""

from __future__ import annotations

import functools
import json
import typing as t
from dataclasses import dataclass, field

import pglast
from pglast import ast, visitors
from pglast.stream import RawStream

Row = t.Tuple[t.Any, ...]
#: (table, policy, "using" or "check", table that it reads), all as ``schema.table`` unquoted pairs.
Name = t.Tuple[str, str]
CutKey = t.Tuple[Name, str, str, Name]


class Endless(Exception):
    """Without further cuts the definition goes in a circle: the access must still fail."""


@dataclass
class Policy:
    name: str
    command: str
    permissive: bool
    roles: t.FrozenSet[str]
    using: t.Optional[str]
    check: t.Optional[str]

    def serves(self, command: str) -> bool:
        return self.command in (command, "ALL")


@dataclass
class Original:
    """The schema before the repair: policies by table, views, and which roles hold which."""

    policies: t.Dict[Name, t.List[Policy]] = field(default_factory=dict)
    secured: t.Set[Name] = field(default_factory=set)
    views: t.Dict[Name, t.Tuple[str, bool]] = field(default_factory=dict)
    held: t.Dict[str, t.FrozenSet[str]] = field(default_factory=dict)


def read(cursor: t.Any, schema: str) -> Original:
    """Reads what is needed, with the server's own views and an empty search_path, so that every name is qualified."""
    cursor.execute("set search_path = ''")
    found = Original(policies=policies(cursor, schema))
    cursor.execute(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = %s"
        " and c.relrowsecurity",
        (schema,),
    )
    found.secured = set(cursor.fetchall())
    cursor.execute(
        "select n.nspname, c.relname, pg_get_viewdef(c.oid), coalesce('security_invoker=true' = any (c.reloptions),"
        " false) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = %s and c.relkind"
        " = 'v'",
        (schema,),
    )
    found.views = {(row[0], row[1]): (row[2].rstrip("; \n"), row[3]) for row in cursor.fetchall()}
    cursor.execute(
        "select a.rolname, array_agg(b.rolname::text) from pg_roles a join pg_roles b on pg_has_role(a.oid, b.oid,"
        " 'USAGE') group by 1"
    )
    found.held = {name: frozenset(held) | {"public"} for name, held in cursor.fetchall()}
    return found


def policies(cursor: t.Any, schema: str) -> t.Dict[Name, t.List[Policy]]:
    cursor.execute("set search_path = ''")
    cursor.execute(
        "select schemaname, tablename, policyname, cmd, permissive, roles::text[], qual, with_check from pg_policies"
        " where schemaname = %s order by 3",
        (schema,),
    )
    found: t.Dict[Name, t.List[Policy]] = {}
    for space, table, name, command, permissive, roles, using, check in cursor.fetchall():
        found.setdefault((space, table), []).append(
            Policy(name, command, permissive == "PERMISSIVE", frozenset(roles), using, check)
        )
    return found


class Evaluator:
    """Evaluates the original texts for one role and one person."""

    def __init__(
        self,
        cursor: t.Any,
        original: Original,
        cuts: t.Callable[[Name, Policy, str, str, str], t.Set[Name]],
        role: str,
        person: t.Optional[str],
    ) -> None:
        """``cuts`` gives the tables cut in (table, policy, slot, role, command)."""
        self.cursor = cursor
        self.original = original
        self.cuts = cuts
        self.role = role
        self.person = person
        self.seen: t.Dict[Name, Name] = {}
        self.busy: t.List[Name] = []
        self.made = 0
        cursor.execute(
            "select set_config('request.jwt.claims', %s, true), set_config('fuzz.grp', %s, true)",
            (claims(role, person), group(person)),
        )

    # -- which rows -------------------------------------------------------------------------------------------------

    def visible(self, name: Name) -> Name:
        """The temporary table with the rows of ``name`` that the caller sees."""
        if name not in self.seen:
            if name in self.busy:
                raise Endless(" -> ".join(".".join(one) for one in [*self.busy, name]))
            self.busy.append(name)
            try:
                if name in self.original.views:
                    text, invoker = self.original.views[name]
                    query = self._substituted_query(text, lambda target: self.visible(target)) if invoker else text
                else:
                    query = f"select * from {show(name)} where {self.condition(name, 'SELECT', 'using')}"
                self.made += 1
                self.cursor.execute(f"create temporary table seen_{self.made} on commit drop as {query}")
            finally:
                self.busy.pop()
            self.seen[name] = ("pg_temp", f"seen_{self.made}")
        return self.seen[name]

    def condition(self, name: Name, command: str, slot: str) -> str:
        """The text that PostgreSQL would apply to a row of ``name`` for ``command``: permissive ones joined by OR,
        restrictive ones by AND.
        """
        if name not in self.original.secured:
            return "true"
        serving = [
            policy
            for policy in self.original.policies.get(name, ())
            if policy.serves(command)
            and policy.roles & self.original.held[self.role]
            and (policy.using or policy.check)
        ]
        if not any(policy.permissive for policy in serving):
            return "false"  # whatever restrictive ones read
        permissive: t.List[str] = []
        restrictive: t.List[str] = []
        for policy in serving:
            used = "check" if slot == "check" and policy.check is not None else "using"
            text = policy.check if used == "check" else policy.using
            if text is None:
                continue
            cut = self.cuts(name, policy, used, self.role, command)
            changed = self._substituted(text, lambda target, cut=cut: target if target in cut else self.visible(target))  # type: ignore[misc]  # its default
            (permissive if policy.permissive else restrictive).append(f"coalesce(({changed}), false)")
        if not permissive:
            return "false"
        return " and ".join([f"({' or '.join(permissive)})", *restrictive])

    # -- the text ---------------------------------------------------------------------------------------------------

    def _substituted(self, text: str, replace: t.Callable[[Name], Name]) -> str:
        return self._substituted_query(f"select {text}", replace)[len("SELECT ") :]

    def _substituted_query(self, text: str, replace: t.Callable[[Name], Name]) -> str:
        template, targets = _template(text)
        for number, target in enumerate(targets):
            template = template.replace(f"{_TARGET}.{_TARGET}_{number}_", show(replace(target)))
        return template.replace(_ROLE, self.role)


_TARGET, _ROLE = "wops_target", "wops-role"


@functools.cache
def _template(text: str) -> t.Tuple[str, t.Tuple[Name, ...]]:
    """The text with a mark in the place of every table and of ``current_user``, and the tables in the order of their
    marks.
    """
    tree = pglast.parse_sql(text)
    marks = _Mark()
    marks(tree)
    return str(RawStream()(t.cast(ast.Node, tree[0].stmt))), tuple(marks.targets)


class _Mark(visitors.Visitor):
    def __init__(self) -> None:
        self.targets: t.List[Name] = []

    def visit_RangeVar(self, ancestors: t.Any, node: ast.RangeVar) -> t.Any:
        if not node.schemaname or node.schemaname == _TARGET:
            return None  # a CTE: the server qualifies every table
        alias = node.alias or ast.Alias(aliasname=node.relname)
        self.targets.append((node.schemaname, str(node.relname)))
        return ast.RangeVar(
            schemaname=_TARGET, relname=f"{_TARGET}_{len(self.targets) - 1}_", inh=True, relpersistence="p", alias=alias
        )

    def visit_SQLValueFunction(self, ancestors: t.Any, node: t.Any) -> t.Any:
        """``current_user`` is the caller, not the superuser who evaluates."""
        constant = ast.A_Const(val=ast.String(sval=_ROLE))
        return ast.TypeCast(
            arg=constant,
            typeName=ast.TypeName(names=(ast.String(sval="pg_catalog"), ast.String(sval="name")), typemod=-1),
        )


def show(name: Name) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in name)


def group(person: t.Optional[str]) -> str:
    """The setting by which a session says its group: the person's number; empty for nobody."""
    return person[7] if person else ""


def claims(role: str, person: t.Optional[str]) -> str:
    return json.dumps({"role": role, **({"sub": person} if person else {})})
