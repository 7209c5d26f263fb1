# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A plan as a migration: one SQL file that can be run again, with its undo script beside it.

It has no BEGIN and no SET: ``psql -1``, ``supabase db push`` and other tools that run migration files have a
transaction and a session of their own. Every statement may run twice. The first statement refuses where a policy is
neither the one that the plan was made from nor already repaired, so that nobody's later change is overwritten.
"""

from __future__ import annotations

import hashlib
import typing as t
from dataclasses import dataclass, field

from ..model import policies, tree
from ..model.catalog import COMMANDS, Policy, Relation
from .plans import Plan

#: The first words of a file of ours, by which it may be replaced.
MARK = "-- wheels-ops rls repair"
UNDO_MARK = "-- wheels-ops rls repair, undo"
UNDO_SUFFIX = ".undo"


@dataclass
class Verification:
    """What was measured in the scratch database; ``None`` where nothing was run."""

    failing_before: t.Optional[int] = None
    failing_after: t.Optional[int] = None
    #: The file that gave each policy its present text, by (qualified table, policy).
    sources: t.Dict[t.Tuple[str, str], str] = field(default_factory=dict)
    #: Sentences: how often it was run, as which role, and what came of it.
    sentences: t.List[str] = field(default_factory=list)


def render(plan: Plan, *, version: str, inputs: t.Sequence[str], verification: Verification, undo_name: str) -> str:
    """The text of the migration. ``inputs`` names what the plan was made from, without any password."""
    if plan.catalog is None:
        raise ValueError("the plan has no catalog")
    lines = [f"{MARK} {version}, for PostgreSQL {plan.catalog.version // 10000} and newer"]
    lines += _comment(f"Made from {name}" for name in inputs)
    if verification.failing_before is not None:
        after = "not measured" if verification.failing_after is None else str(verification.failing_after)
        lines += _comment(
            [f"Failing accesses (role, table, command): {verification.failing_before} before, {after} after."]
        )
    lines += _comment(verification.sentences)
    lines += _comment([f"Undo: psql -1 -f {undo_name}"])
    for review in plan.needs_review:
        lines += _comment([f"Left to a person: {review['object']}: {review['reason']}. {review['advice']}"])
    lines += ["", *_guard(plan), ""]
    for statement in plan.statements[: len(plan.statements) - plan.locking]:
        lines += [_repeatable(statement) + ";", ""]
    for change in plan.changes:
        before, _after = change.texts()
        for policy in change.before:
            source = verification.sources.get((change.relation.qualified, policy.name))
            lines += _comment(
                [f"{change.relation.qualified}: {policy.quoted}" + (f", from {source}" if source else "")]
            )
        lines += _comment(["Before:", *before.rstrip("\n").splitlines()])
        lines += [statement + ";" for statement in _apply(change)]
        lines.append("")
    for create in plan.indexes:
        lines += [create.replace("CREATE INDEX CONCURRENTLY", "CREATE INDEX IF NOT EXISTS", 1) + ";", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def render_undo(plan: Plan, *, version: str, name: str) -> str:
    """The text of the script that restores the policies and removes what the migration ``name`` created."""
    lines = [f"{UNDO_MARK} {version}", f"-- Reverts {name}: psql -1 -f THIS_FILE", ""]
    lines += [drop.replace("DROP INDEX CONCURRENTLY", "DROP INDEX", 1) + ";" for drop in plan.drop_indexes]
    policy_statements = {statement for change in plan.changes for statement in change.undo()}
    for change in reversed(plan.changes):
        lines += [statement + ";" for statement in _undo(change)]
    lines += [statement + ";" for statement in plan.undo if statement not in policy_statements]
    return "\n".join(lines) + "\n"


def _comment(texts: t.Iterable[str]) -> t.List[str]:
    # A line break in a name would end the comment.
    return ["-- " + line for text in texts for line in text.splitlines()]


def _repeatable(statement: str) -> str:
    """A statement of a plan's preparation, so that it may run where it ran before."""
    for words in ("CREATE SCHEMA ", "CREATE FUNCTION "):
        if statement.startswith(words):
            kind = words.split()[1]
            new = "CREATE SCHEMA IF NOT EXISTS " if kind == "SCHEMA" else "CREATE OR REPLACE FUNCTION "
            return new + statement[len(words) :]
    return statement


def _replace(relation: Relation, names: t.Iterable[str], creates: t.Iterable[str]) -> t.List[str]:
    drops = [f"DROP POLICY IF EXISTS {tree.quote(name)} ON {relation.qualified}" for name in dict.fromkeys(names)]
    return [*drops, *creates]


def _apply(change: policies.Change) -> t.List[str]:
    if change.in_place:
        return change.apply()
    names = [*(policy.name for policy in change.before), *(piece.name for piece in change.after)]
    return _replace(change.relation, names, change.creates())


def _undo(change: policies.Change) -> t.List[str]:
    if change.in_place:
        return change.undo()
    names = [*(piece.name for piece in change.after), *(policy.name for policy in change.before)]
    return _replace(change.relation, names, change.restores())


def _digest(policy: Policy) -> str:
    """As ``_guard`` computes it in SQL: what pg_policies shows of a policy, but for its roles, which have an order of
    their own.
    """
    using, check = (part.text if part else "" for part in (policy.using, policy.check))
    return hashlib.md5(f"{COMMANDS[policy.command]}|{using}|{check}".encode(), usedforsecurity=False).hexdigest()


def _guard(plan: Plan) -> t.List[str]:
    """Refuses to overwrite a policy that somebody changed since. Texts are compared on the same major version only, as
    each prints expressions in its own way."""
    if plan.catalog is None or not plan.changes:
        return []
    rows = ",\n      ".join(
        f"({tree.literal(change.relation.schema)}, {tree.literal(change.relation.name)}, {tree.literal(policy.name)},"
        f" {tree.literal(_digest(policy))}, {tree.literal(new)})"
        for change in plan.changes
        for new in [_marker(change, plan)]
        for policy in change.before
    )
    return [
        "DO $wheels_ops$",
        "DECLARE",
        "  path text := pg_catalog.current_setting('search_path');",
        "  changed text;",
        "BEGIN",
        "  PERFORM pg_catalog.set_config('search_path', '', true);  -- pg_policies then prints every name in full",
        "  SELECT pg_catalog.string_agg(pg_catalog.format('%I on %I.%I', p.policyname, p.schemaname, p.tablename), ', ')",
        "    INTO changed FROM (VALUES",
        f"      {rows}",
        "    ) AS planned (schema_name, table_name, policy_name, digest, marker)",
        "    JOIN pg_catalog.pg_policies p ON p.schemaname = planned.schema_name AND p.tablename = planned.table_name",
        "      AND p.policyname = planned.policy_name",
        "    WHERE pg_catalog.md5(pg_catalog.concat(p.cmd, '|', p.qual, '|', p.with_check)) <> planned.digest",
        "      AND pg_catalog.strpos(pg_catalog.concat(p.qual, p.with_check), planned.marker) = 0;",
        "  PERFORM pg_catalog.set_config('search_path', path, true);",
        f"  IF changed IS NOT NULL AND pg_catalog.current_setting('server_version_num')::int / 10000 = {plan.catalog.version // 10000} THEN",
        "    RAISE EXCEPTION 'changed since this migration was made: %', changed",
        "      USING HINT = 'Nothing was changed. Run wheels-ops rls repair again, with the present migrations.';",
        "  END IF;",
        "END",
        "$wheels_ops$;",
    ]


def _marker(change: policies.Change, plan: Plan) -> str:
    """The name of a helper by which a repaired text is told; empty where it has none, and then any text
    may be there.
    """
    texts = [text for piece in change.after for text in (piece.using, piece.check) if text]
    names = sorted(str(function["name"]) for function in plan.functions)
    return next((name for name in names if any(name in text for text in texts)), "")
