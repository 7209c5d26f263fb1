# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Policies as SQL: what a policy becomes, the statements that make it so, and those that take it back exactly."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from . import deparse_roundtrip, tree
from .catalog import COMMANDS, Policy, Relation


@dataclass(frozen=True)
class Piece:
    """A policy as it is to be. ``roles`` are quoted names; ``command`` is one of r a w d ``*``."""

    name: str
    command: str
    permissive: bool
    roles: t.Tuple[str, ...]
    using: t.Optional[str]
    check: t.Optional[str]

    def create(self, table: str) -> str:
        kind = "" if self.permissive else "\n  AS RESTRICTIVE"
        return (
            f"CREATE POLICY {tree.quote(self.name)} ON {table}{kind}\n  FOR {COMMANDS[self.command]} TO"
            f" {', '.join(self.roles)}{self._conditions()}"
        )

    def alter(self, table: str) -> str:
        return f"ALTER POLICY {tree.quote(self.name)} ON {table}{self._conditions()}"

    def _conditions(self) -> str:
        words = (("USING", self.using), ("WITH CHECK", self.check))
        return "".join(f"\n  {word} ({deparse_roundtrip.same_tree(text)})" for word, text in words if text is not None)

    def drop(self, table: str) -> str:
        return f"DROP POLICY {tree.quote(self.name)} ON {table}"


def original(policy: Policy) -> Piece:
    """The policy as the catalog has it."""
    return Piece(
        policy.name,
        policy.command,
        policy.permissive,
        policy.role_names,
        policy.using.text if policy.using else None,
        policy.check.text if policy.check else None,
    )


@dataclass
class Change:
    """What becomes of the policies ``before`` (one; several where they are merged) of one table.

    ``guarded``: for pieces (by name) the roles for whose members they let nothing through, or take nothing away.
    """

    relation: Relation
    before: t.List[Policy]
    after: t.List[Piece]
    reasons: t.List[str] = field(default_factory=list)
    guarded: t.Dict[str, t.FrozenSet[str]] = field(default_factory=dict)

    @property
    def in_place(self) -> bool:
        """Whether ALTER POLICY suffices, which keeps the policy's oid and comment."""
        if len(self.before) != 1 or len(self.after) != 1:
            return False
        old, new = original(self.before[0]), self.after[0]
        same = (old.name, old.command, old.permissive, old.roles) == (new.name, new.command, new.permissive, new.roles)
        return same and (old.using is None) == (new.using is None) and (old.check is None) == (new.check is None)

    def apply(self) -> t.List[str]:
        table = self.relation.qualified
        if self.in_place:
            return [self.after[0].alter(table)]
        return [*(original(policy).drop(table) for policy in self.before), *self.creates()]

    def creates(self) -> t.List[str]:
        """What makes the new policies where none of those names is left."""
        comment = next((policy.comment for policy in self.before if policy.comment), None)
        return _created(self.relation.qualified, [(piece, comment) for piece in self.after])

    def undo(self) -> t.List[str]:
        table = self.relation.qualified
        if self.in_place:
            return [original(self.before[0]).alter(table)]
        return [*(piece.drop(table) for piece in self.after), *self.restores()]

    def restores(self) -> t.List[str]:
        """What makes the old policies where none of those names is left."""
        return _created(self.relation.qualified, [(original(policy), policy.comment) for policy in self.before])

    def texts(self) -> t.Tuple[str, str]:
        """(before, after) for people, as CREATE POLICY."""
        table = self.relation.qualified
        return (
            "".join(original(policy).create(table) + ";\n" for policy in self.before),
            "".join(piece.create(table) + ";\n" for piece in self.after),
        )


def _created(table: str, wanted: t.Iterable[t.Tuple[Piece, t.Optional[str]]]) -> t.List[str]:
    statements: t.List[str] = []
    for piece, comment in wanted:
        statements.append(piece.create(table))
        if comment:
            statements.append(f"COMMENT ON POLICY {tree.quote(piece.name)} ON {table} IS {tree.literal(comment)}")
    return statements


def unused_name(wanted: str, names: t.Container[str]) -> str:
    """``wanted`` cut to the 63 bytes of an identifier, numbered where it is taken."""
    number = 1
    while True:
        ending = "" if number == 1 else f" {number}"
        name = wanted.encode()[: 63 - len(ending)].decode(errors="ignore") + ending
        if name not in names:
            return name
        number += 1
