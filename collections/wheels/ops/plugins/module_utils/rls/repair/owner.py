# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who owns the helper functions: a role that row-level security does not bind and that may read what they read, no
more.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ...core.results import OpsError
from ..audit.simulate import Simulator
from ..model import tree
from ..model.catalog import Catalog, Function, Relation
from ..model.transactions import Cursor, rows
from .clone import Clone
from .rewrite import CannotRewrite, Creatable, Helper

#: The role that a superuser makes for the helpers.
DEDICATED = "rls_definer"


@dataclass
class Owners:
    """The choice of owners for one plan.

    ``single`` owns every helper; without one, the owner of the table does that it reads.
    """

    catalog: Catalog
    single: t.Optional[str]
    created: bool
    dedicated: bool
    why: str
    memberships: t.FrozenSet[str] = frozenset()
    _simulator: t.Optional[Simulator] = field(default=None, repr=False)

    def of(self, relation: Relation) -> str:
        """The owner of a helper that reads ``relation``; ``CannotRewrite`` where row-level security would bind every
        candidate.
        """
        if self.single is not None:
            return self.single
        name = self.catalog.role_name(relation.owner)
        bound = [below.short for below in self.below(relation) if not self._exempt(below, relation.owner)]
        if bound:
            raise CannotRewrite(
                f"row-level security of {', '.join(bound)} would bind a function owned by {name}: connect as a role"
                " with BYPASSRLS, or name one as owner"
            )
        if name not in self.memberships:
            raise CannotRewrite(
                f"{self.catalog.current_user} may not make functions that belong to {name}, who owns {relation.short}"
            )
        return name

    def of_helper(self, helper: Creatable) -> str:
        """The owner of a helper, which must be exempt from the row-level security of everything that it reads."""
        owners = {self.of(self.catalog.relations[oid]) for oid in _relations(helper)}
        if len(owners) > 1:
            raise CannotRewrite(
                f"{helper.relation_name} reads tables of {', '.join(sorted(owners))}: no one of them is exempt from the"
                " others' policies"
            )
        return owners.pop() if owners else self.single or self.catalog.current_user

    def below(self, relation: Relation) -> t.List[Relation]:
        """The relation, and what a view with security_invoker reads with the rights of the helper's owner."""
        result, todo = [], [relation]
        while todo:
            current = todo.pop()
            if current in result:
                continue
            result.append(current)
            if current.kind == "v" and current.invoker and current.query:
                todo += [
                    self.catalog.relations[oid] for oid in current.query.relations if oid in self.catalog.relations
                ]
        return result

    def _exempt(self, relation: Relation, owner: int) -> bool:
        self._simulator = self._simulator or Simulator(self.catalog)
        return self._simulator.exempt(relation, owner)

    def role_statements(self) -> t.List[str]:
        """Creates the role where it is missing: a repair of another database of this server may create it at the same
        time.
        """
        if not self.created:
            return []
        create = f"CREATE ROLE {tree.quote(DEDICATED)} NOLOGIN NOINHERIT BYPASSRLS"
        return [
            f"DO $wheels_ops$\nBEGIN\n  {create};\nEXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;\n"
            "END\n$wheels_ops$"
        ]

    def grants(self, cursor: Cursor, helpers: t.Sequence[Creatable]) -> t.List[t.Tuple[str, str]]:
        """(GRANT, REVOKE) of what the dedicated owner lacks for these helpers, by column where that suffices."""
        if not self.dedicated:
            return []
        if self.single is None:
            raise AssertionError("a defect: self.single is missing")
        role = tree.quote(self.single)
        needed: t.Dict[int, t.Optional[t.Set[str]]] = {}
        for helper in helpers:
            for oid in _relations(helper):
                for relation in self.below(self.catalog.relations[oid]):
                    columns = (
                        set(helper.reads)
                        if isinstance(helper, Helper) and relation.oid == oid and helper.reads
                        else None
                    )
                    present_columns = needed.get(relation.oid, set())
                    needed[relation.oid] = (
                        None if columns is None or present_columns is None else present_columns | columns
                    )
        pairs: t.List[t.Tuple[str, str]] = []
        for oid, names in sorted(needed.items()):
            relation = self.catalog.relations[oid]
            if not self.created:
                if names is None:
                    cursor.execute("select has_table_privilege(%s::name, %s::oid, 'SELECT')", (self.single, oid))
                    if cursor.fetchone()[0]:
                        continue
                else:
                    cursor.execute(
                        "select attname from pg_catalog.pg_attribute where attrelid = %s::oid and attname = any(%s)"
                        " and not has_column_privilege(%s::name, attrelid, attnum, 'SELECT')",
                        (oid, sorted(names), self.single),
                    )
                    names = {name for (name,) in cursor.fetchall()}
                    if not names:
                        continue
            part = "" if names is None else " (" + ", ".join(tree.quote(name) for name in sorted(names)) + ")"
            pairs.append(
                (
                    f"GRANT SELECT{part} ON TABLE {relation.qualified} TO {role}",
                    f"REVOKE SELECT{part} ON TABLE {relation.qualified} FROM {role}",
                )
            )
        for schema in sorted(self._schemas(helpers)):
            if not self.created:
                cursor.execute("select has_schema_privilege(%s::name, %s, 'USAGE')", (self.single, schema))
                if cursor.fetchone()[0]:
                    continue
            pairs.append(
                (
                    f"GRANT USAGE ON SCHEMA {tree.quote(schema)} TO {role}",
                    f"REVOKE USAGE ON SCHEMA {tree.quote(schema)} FROM {role}",
                )
            )
        for function in self._private_functions(helpers):
            pairs.append(
                (
                    f"GRANT EXECUTE ON FUNCTION {function.signature} TO {role}",
                    f"REVOKE EXECUTE ON FUNCTION {function.signature} FROM {role}",
                )
            )
        return pairs

    def _schemas(self, helpers: t.Sequence[Creatable]) -> t.Set[str]:
        """The schemas in which a body that is kept as text looks its names up when it runs, with the owner's rights."""
        names: t.Set[str] = set()
        for helper in helpers:
            if isinstance(helper, Clone) or self.catalog.version < 140000:
                names |= {self.catalog.relations[oid].schema for oid in _relations(helper)}
                names |= {"auth"} & {function.schema for function in self.catalog.functions.values()}
            if isinstance(helper, Clone):
                names |= set(helper.search_path) | {self.catalog.functions[oid].schema for oid in helper.calls}
        return names

    def _private_functions(self, helpers: t.Sequence[Creatable]) -> t.List[Function]:
        """What the helpers call and not everybody may."""
        called: t.Set[int] = set()
        for helper in helpers:
            if isinstance(helper, Clone):
                called |= set(helper.calls)
            elif isinstance(helper, Helper):
                called |= {
                    function.oid
                    for function in self.catalog.functions.values()
                    if function.schema == "auth" and f"auth.{function.name}" in helper.identity
                }
        return [self.catalog.functions[oid] for oid in sorted(called) if not self.catalog.functions[oid].public_execute]


def _relations(helper: Creatable) -> t.Tuple[int, ...]:
    if isinstance(helper, Clone):
        return helper.relations
    return (helper.relation,) if isinstance(helper, Helper) else ()


def choose(cursor: Cursor, catalog: Catalog, requested: t.Optional[str] = None) -> Owners:
    """A role of their own where a superuser asks; else the session's role, if it has BYPASSRLS; else the tables'
    owners.
    """
    roles = {role.name: role for role in catalog.roles.values()}
    me = roles[catalog.current_user]
    cursor.execute("select rolname from pg_catalog.pg_roles where pg_has_role(current_user, oid, 'MEMBER')")
    memberships = frozenset(name for (name,) in cursor.fetchall())
    if requested is not None:
        if requested not in roles:
            raise OpsError(
                f"There is no role {requested} to own the functions.", hint="Create it: NOLOGIN, with BYPASSRLS."
            )
        role = roles[requested]
        if not (role.superuser or role.bypass):
            raise OpsError(
                f"Row-level security would bind functions that belong to {requested}: the recursion would stay.",
                hint=f"ALTER ROLE {tree.quote(requested)} BYPASSRLS, or name another owner.",
            )
        if requested not in memberships and not me.superuser:
            raise OpsError(
                f"{me.name} may not make functions that belong to {requested}.",
                hint=f"GRANT {tree.quote(requested)} TO {tree.quote(me.name)}.",
            )
        return Owners(catalog, requested, False, not role.superuser, "as requested", memberships)
    existing = roles.get(DEDICATED)
    usable = existing is not None and existing.bypass and not existing.superuser and not _logs_in(cursor, DEDICATED)
    if me.superuser and (existing is None or usable):
        return Owners(catalog, DEDICATED, existing is None, True, "a role of its own that cannot log in", memberships)
    if me.superuser or me.bypass:
        return Owners(catalog, me.name, False, not me.superuser, "the session's role has BYPASSRLS", memberships)
    return Owners(catalog, None, False, False, "the tables' own owners", memberships)


def _logs_in(cursor: Cursor, name: str) -> bool:
    return bool(
        rows(cursor, "select rolcanlogin as can from pg_catalog.pg_roles where rolname = %(name)s", {"name": name})[0][
            "can"
        ]
    )
