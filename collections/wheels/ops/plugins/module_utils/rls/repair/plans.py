# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan of a repair: every statement that it takes, every statement that takes it back, and what is left to a
person.
"""

from __future__ import annotations

import dataclasses
import typing as t
from dataclasses import dataclass, field

from ...core.results import OpsError
from ..audit.audits import Audit
from ..audit.simulate import Cut
from ..model import column_details, policies, tree
from ..model.catalog import Catalog
from ..model.transactions import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, Connection, Cursor, rows, transaction
from . import captured, owner, speed_fixes
from .cuts import Decision, Options, Planner
from .rewrite import Creatable

FIXES = ("recursion", "captured", "volatile", "initplan", "indexes", "multiple_permissive")
#: These repair what ``recursion`` refuses, and so do what that does as well.
_WITH_RECURSION = frozenset(("captured", "volatile"))
HELPER_SCHEMA = "rls_ops"


@dataclass
class Plan:
    """``statements`` run in one transaction, ``undo`` takes them back in one; ``indexes`` run after it, outside of a
    transaction, because CREATE INDEX CONCURRENTLY must, and ``drop_indexes`` takes those back. ``cuts`` tells which
    reference is replaced and how; ``needs_review`` what is left as it is, why, and what to do about it.
    """

    statements: t.List[str] = field(default_factory=list)
    undo: t.List[str] = field(default_factory=list)
    indexes: t.List[str] = field(default_factory=list)
    drop_indexes: t.List[str] = field(default_factory=list)
    cuts: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    needs_review: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    changes: t.List[policies.Change] = field(default_factory=list)
    functions: t.List[t.Dict[str, t.Any]] = field(default_factory=list)
    warnings: t.List[str] = field(default_factory=list)
    owner: str = ""
    helper_schema: str = HELPER_SCHEMA
    #: How many of ``statements``, counted from the end, lock tables.
    locking: int = 0
    #: The accesses (role, relation, variant) that fail afterwards as well.
    left: t.Set[t.Tuple[str, str, str]] = field(default_factory=set)
    #: How many accesses could end in 54001 before.
    runtime_before: int = 0
    catalog: t.Optional[Catalog] = field(default=None, repr=False)
    #: What the audit was narrowed down to.
    schemas: t.Optional[t.Tuple[str, ...]] = None
    roles: t.Optional[t.Tuple[str, ...]] = None
    cut: Cut = field(default_factory=lambda: Cut({}), repr=False)
    #: The policies (oids) that mean something else afterwards, because somebody asked for it.
    reworded: t.FrozenSet[int] = frozenset()

    @property
    def empty(self) -> bool:
        return not self.statements and not self.indexes

    def diff(self) -> t.List[t.Dict[str, str]]:
        """Policy texts before and after, and the functions, for ``--diff``."""
        result = []
        for change in self.changes:
            before, after = change.texts()
            name = f"policies of {change.relation.qualified}"
            result.append({"before": before, "after": after, "before_header": name, "after_header": name})
        for function in self.functions:
            result.append(
                {
                    "before": "",
                    "after": function["definition"] + ";\n",
                    "before_header": function["signature"],
                    "after_header": function["signature"],
                }
            )
        return result

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {
            "statements": self.statements,
            "undo": self.undo,
            "indexes": self.indexes,
            "cuts": self.cuts,
            "needs_review": self.needs_review,
            "functions": self.functions,
            "warnings": self.warnings,
            "owner": self.owner,
            "policies": [
                {"table": change.relation.qualified, "before": before, "after": after, "reasons": change.reasons}
                for change in self.changes
                for before, after in [change.texts()]
            ],
        }


def plan(
    connection: Connection,
    audit: Audit,
    *,
    fix: t.Sequence[str] = ("recursion",),
    allow_unbounded: bool = False,
    accept_captured_columns: bool = False,
    helper_schema: str = HELPER_SCHEMA,
    owner: t.Optional[str] = None,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> Plan:
    """What to do about an audit's findings; reads only. ``fix`` names the kinds of ``FIXES``.

    Raises ``OpsError`` for options that cannot work; what cannot be repaired stands in ``needs_review`` while the rest
    is planned.
    """
    unknown = sorted(set(fix) - set(FIXES))
    if unknown:
        raise OpsError(f"There is no fix called {', '.join(unknown)}.", hint=f"There are {', '.join(FIXES)}.")
    if not _WITH_RECURSION.isdisjoint(fix):
        fix = ("recursion", *fix)
    with transaction(
        connection, read_only=True, statement_timeout_ms=statement_timeout_ms, lock_timeout_ms=lock_timeout_ms
    ) as cursor:
        options = Options(allow_unbounded, accept_captured_columns, helper_schema, "volatile" in fix)
        return _plan(cursor, audit.catalog, fix, options, owner)


def _plan(cursor: Cursor, catalog: Catalog, fix: t.Sequence[str], options: Options, requested: t.Optional[str]) -> Plan:
    details = column_details.read(cursor, catalog)
    owners = owner.choose(cursor, catalog, requested)
    proposals = captured.propose(cursor, catalog, details) if "captured" in fix else []
    original, catalog = catalog, captured.applied(catalog, proposals) if proposals else catalog
    planner = Planner(cursor, catalog, details, owners, options)
    decision = planner.decide() if "recursion" in fix else Decision()
    result = Plan(catalog=original, cuts=decision.cuts, left=decision.left, cut=decision.cut)
    result.helper_schema = options.helper_schema
    result.schemas = tuple(sorted(catalog.schemas)) if catalog.schemas is not None else None
    result.roles = catalog.asked_roles
    result.runtime_before = len(planner.runtime)
    result.needs_review = [refusal.as_dict() for refusal in decision.refusals]
    if "recursion" not in fix:
        planner.survey()
        result.left = {
            (access.who.name, access.relation.qualified, access.variant)
            for access in [*planner.failing, *planner.runtime]
        }
    result.indexes, result.drop_indexes, slow = speed_fixes.extend(cursor, decision, catalog, details, fix)
    result.warnings = [*decision.warnings, *slow]
    result.reworded = _qualify(decision, original, proposals)
    result.changes = decision.changes
    _functions(cursor, result, decision, catalog, owners, options)
    _policies(result, decision)
    return result


def _qualify(decision: Decision, original: Catalog, proposals: t.Sequence[captured.Proposal]) -> t.FrozenSet[int]:
    """Gives the changes the policies as they are written, and a change to each qualified policy that has none yet."""
    oids = {proposal.policy.oid for proposal in proposals}
    written = {policy.oid: policy for policy in original.policies()}
    for change in decision.changes:
        if not oids.isdisjoint(policy.oid for policy in change.before):
            change.reasons = [*change.reasons, "captured"]
        change.before = [written[policy.oid] for policy in change.before]
    changed = {policy.oid for change in decision.changes for policy in change.before}
    texts = {(proposal.policy.oid, proposal.slot): proposal.qualified for proposal in proposals}
    for oid in sorted(oids - changed):
        policy = written[oid]
        piece = policies.original(policy)
        new = dataclasses.replace(
            piece, using=texts.get((oid, "using"), piece.using), check=texts.get((oid, "check"), piece.check)
        )
        decision.changes.append(policies.Change(original.relations[policy.relation], [policy], [new], ["captured"]))
    return frozenset(oids)


def _functions(
    cursor: Cursor, result: Plan, decision: Decision, catalog: Catalog, owners: owner.Owners, options: Options
) -> None:
    """The helpers with their schema, owner and grants."""
    schema = options.helper_schema
    helpers = sorted(decision.helpers.items())
    if not helpers:
        return
    present, exists = _present(cursor, schema)
    _check_schema(cursor, schema, exists)
    strangers = _strangers(cursor)
    new = [(name, helper, roles) for name, (helper, roles) in helpers if name not in present]
    result.owner = owners.single or "the tables' owners"
    result.statements += owners.role_statements() if new else []
    if not exists and new:
        result.statements.append(f"CREATE SCHEMA {tree.quote(schema)}")
        result.statements.append(
            f"REVOKE ALL ON SCHEMA {tree.quote(schema)} FROM {', '.join(['PUBLIC', *strangers['n']])}"
        )
    grants = owners.grants(cursor, [helper for _text, helper, _roles in new]) if new else []
    result.statements += [grant for grant, _ignored in grants]
    dropped: t.List[str] = []
    for name, (helper, roles) in helpers:
        signature = helper.signature(schema)
        belongs = owners.of_helper(helper)
        if name in present:
            if present[name] not in (belongs, catalog.current_user):
                raise OpsError(
                    f"{signature} exists already and belongs to {present[name]} instead of {belongs}.",
                    hint="Someone else made it. Look at it, drop it, or use another helper_schema.",
                )
        else:
            definition = helper.create(schema, atomic=catalog.version >= 140000)
            result.functions.append(_described(helper, signature, definition, belongs, roles))
            result.statements.append(definition)
            if belongs != catalog.current_user:
                result.statements.append(f"ALTER FUNCTION {signature} OWNER TO {tree.quote(belongs)}")
            result.statements.append(
                f"REVOKE ALL ON FUNCTION {signature} FROM {', '.join(['PUBLIC', *strangers['f']])}"
            )
            result.statements.append(
                f"COMMENT ON FUNCTION {signature} IS"
                f" {tree.literal('wheels.ops: reads ' + helper.relation_name + ' for its policies, without their recursion')}"
            )
            dropped.append(_guarded(f"DROP FUNCTION IF EXISTS {signature}"))
        callers = ["PUBLIC"] if "public" in roles else sorted(roles)
        result.statements.append(f"GRANT EXECUTE ON FUNCTION {signature} TO {', '.join(callers)}")
    result.undo += dropped
    result.undo += [_guarded(revoke) for _ignored, revoke in reversed(grants)] if not owners.created else []
    if not exists and new:
        result.undo.append(_guarded(f"DROP SCHEMA IF EXISTS {tree.quote(schema)}"))
    if owners.created and new:
        # Each by itself: the role stays where a repair of another database needs it, and its rights here go all the
        # same.
        result.undo += [_guarded(revoke) for _ignored, revoke in reversed(grants)]
        result.undo.append(_guarded(f"DROP ROLE IF EXISTS {tree.quote(owner.DEDICATED)}"))


def _described(
    helper: Creatable, signature: str, definition: str, belongs: str, roles: t.Collection[str]
) -> t.Dict[str, t.Any]:
    return {
        "signature": signature,
        "name": helper.name,
        "reads": helper.relation_name,
        "bound": helper.bound or "unbounded",
        "owner": belongs,
        "roles": sorted(roles),
        "definition": definition,
    }


def _policies(result: Plan, decision: Decision) -> None:
    result.undo = [statement for change in reversed(decision.changes) for statement in change.undo()] + result.undo
    for change in decision.changes:
        statements = change.apply()
        result.statements += statements
        result.locking += len(statements)


def _guarded(*statements: str) -> str:
    """Statements of an undo that give way where someone else has come to depend on what they take back."""
    body = "\n".join(f"  EXECUTE {tree.literal(statement)};" for statement in statements)
    return (
        f"DO $wheels_ops$\nBEGIN\n{body}\nEXCEPTION WHEN dependent_objects_still_exist OR undefined_object THEN"
        " NULL;\nEND\n$wheels_ops$"
    )


def _present(cursor: Cursor, schema: str) -> t.Tuple[t.Dict[str, str], bool]:
    """(functions of the helper schema with their owners, does the schema exist)."""
    records = rows(
        cursor,
        "select p.proname as name, pg_get_userbyid(p.proowner) as owner from pg_catalog.pg_proc p"
        " join pg_catalog.pg_namespace n on n.oid = p.pronamespace where n.nspname = %(schema)s",
        {"schema": schema},
    )
    cursor.execute("select true from pg_catalog.pg_namespace where nspname = %s", (schema,))
    return {row["name"]: row["owner"] for row in records}, cursor.fetchone() is not None


def _check_schema(cursor: Cursor, schema: str, exists: bool) -> None:
    if not exists:
        return
    records = rows(
        cursor,
        "select r.rolname as name from pg_catalog.pg_roles r, pg_catalog.pg_namespace n where n.nspname = %(schema)s"
        " and not r.rolsuper and not r.rolbypassrls and r.rolname !~ '^pg_' and not pg_has_role(r.oid, n.nspowner,"
        " 'USAGE') and has_schema_privilege(r.oid, n.oid, 'USAGE, CREATE') order by 1",
        {"schema": schema},
    )
    if records:
        names = ", ".join(row["name"] for row in records)
        raise OpsError(
            f"The schema {schema} is open to {names}: functions in it could be called from outside.",
            hint=(
                f"Name a helper_schema that nobody uses, or REVOKE ALL ON SCHEMA {tree.quote(schema)} FROM PUBLIC,"
                f" {names}."
            ),
        )


def _strangers(cursor: Cursor) -> t.Dict[str, t.List[str]]:
    """Roles that default privileges would let into new functions (f) and schemas (n)."""
    records = rows(
        cursor,
        "select distinct d.defaclobjtype::text as kind, quote_ident(r.rolname) as name"
        " from pg_catalog.pg_default_acl d, aclexplode(d.defaclacl) a join pg_catalog.pg_roles r on r.oid = a.grantee"
        " where d.defaclobjtype in ('f', 'n') and not r.rolsuper order by 1, 2",
    )
    return {kind: [row["name"] for row in records if row["kind"] == kind] for kind in ("f", "n")}
