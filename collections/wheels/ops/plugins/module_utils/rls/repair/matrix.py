# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who can do what: role x table x command, before a repair and after it, for whoever must sign off the change."""

from __future__ import annotations

import dataclasses
import typing as t
from dataclasses import dataclass, field

from ..audit import oracle
from ..audit.audits import Audit, accesses, audit
from ..audit.formats import named
from ..audit.simulate import Simulator
from ..model.catalog import Catalog, Relation, read
from ..model.roles import SUPABASE_ROLES, RoleClass
from ..model.transactions import Connection, Cursor, rows, transaction
from . import compare, prediction
from .plans import Plan
from .verification import preparations, touched
from .visibility import Refused, Unmeasured, Visibility

WORKS, FAILS, PARTLY, DENIED, NOTHING, OPEN = "works", "fails", "fails in part", "no privilege", "no row", "every row"

#: What the words mean, in the order of how much they let through.
MEANINGS = {
    OPEN: "row-level security does not hold the role back",
    WORKS: "policies decide which rows",
    NOTHING: "no policy lets a row through",
    PARTLY: "some forms fail, with RETURNING or ON CONFLICT for example",
    FAILS: "PostgreSQL refuses every such access with an error",
    DENIED: "the role lacks the privilege on the table",
}
#: The commands and the forms (``oracle.VARIANTS``) in which the server is asked, the usual one first.
COMMANDS = {
    "SELECT": ("select", "select_for_update"),
    "INSERT": ("insert", "insert_returning", "upsert"),
    "UPDATE": ("update", "update_blind"),
    "DELETE": ("delete", "delete_blind"),
}
#: The policies without which a command finds or writes no row: SELECT's as well where rows are looked up.
_NEEDED = {
    "SELECT": ("select",),
    "INSERT": ("insert",),
    "UPDATE": ("update_blind", "select"),
    "DELETE": ("delete_blind", "select"),
}
#: Rows are counted in so many relations at most, as so many people of the data, besides an outsider and nobody.
COUNTED_RELATIONS, COUNTED_USERS = 200, 3

_RIGHTS = """
select r.rolname::text as role, c.oid::bigint as relation, has_any_column_privilege(r.oid, c.oid, 'SELECT') as "SELECT",
       has_any_column_privilege(r.oid, c.oid, 'INSERT') as "INSERT",
       has_any_column_privilege(r.oid, c.oid, 'UPDATE') as "UPDATE",
       has_table_privilege(r.oid, c.oid, 'DELETE') as "DELETE"
  from pg_catalog.pg_roles r, unnest(%(relations)s::oid[]) as c(oid) where r.rolname = any(%(roles)s::text[])
"""
_SETTABLE = """
select rolname::text as role from pg_catalog.pg_roles
 where rolname = any(%(roles)s::text[])
   and (pg_catalog.current_setting('is_superuser')::boolean or pg_has_role(session_user, oid, %(set)s))
"""


@dataclass(frozen=True)
class Cell:
    """What one command does; ``rows``: the fewest and the most rows that one of the people who were tried sees."""

    word: str
    rows: t.Optional[t.Tuple[int, int]] = None

    @property
    def text(self) -> str:
        if self.rows is None:
            return self.word
        low, high = self.rows
        if low == high:
            return f"{self.word}, {low} row{'s' if low != 1 else ''}"
        return f"{self.word}, {low} to {high} rows"


Cells = t.Dict[t.Tuple[str, str, str], Cell]


@dataclass
class Matrix:
    """``before`` and ``after`` by (role, relation, command); ``after`` is None for an audit. ``roles`` gives for each
    role those that it stands for; ``notes`` say how the numbers came about.
    """

    database: str
    roles: t.Dict[str, t.Tuple[str, ...]]
    relations: t.List[str]
    before: Cells
    after: t.Optional[Cells] = None
    notes: t.List[str] = field(default_factory=list)

    def changed(self, relation: str) -> bool:
        return self.after is not None and any(
            self.after.get(key) != cell for key, cell in self.before.items() if key[1] == relation
        )

    def failing(self, cells: Cells) -> int:
        return sum(cell.word in (FAILS, PARTLY) for cell in cells.values())

    def ordered(self) -> t.Tuple[t.List[str], t.List[str]]:
        """(relations to read first: what changes, or fails where nothing changes; the others)."""
        if self.after is not None:
            first = [name for name in self.relations if self.changed(name)]
        else:
            failing = {key[1] for key, cell in self.before.items() if cell.word in (FAILS, PARTLY)}
            first = [name for name in self.relations if name in failing]
        return first, [name for name in self.relations if name not in first]

    def rows_of(self, relation: str) -> t.Iterator[t.Tuple[str, t.List[t.Tuple[t.Optional[Cell], t.Optional[Cell]]]]]:
        """For each role (before, after) of the four commands; None where there is no such access."""
        for role, members in self.roles.items():
            pairs = []
            for command in COMMANDS:
                key = (role, relation, command)
                pairs.append((self.before.get(key), None if self.after is None else self.after.get(key)))
            there = {cell.word for pair in pairs for cell in pair if cell is not None}
            if there - {DENIED} or (there and not set(members).isdisjoint(SUPABASE_ROLES)):
                yield named(members), pairs

    @property
    def meanings(self) -> t.Dict[str, str]:
        """The words that occur, and what they mean."""
        words = {cell.word for cells in (self.before, self.after or {}) for cell in cells.values()}
        return {word: meaning for word, meaning in MEANINGS.items() if word in words}

    @property
    def sentences(self) -> t.List[str]:
        """What a person who signs wants to know first."""
        failing = self.failing(self.before)
        total = sum(cell.word != DENIED for cell in self.before.values())
        if self.after is None:
            return [f"{failing} of {total} commands fail, of those that a role has the privilege for.", *self.notes]
        lost = sum(
            cell.word not in (FAILS, PARTLY) and self.after.get(key, cell).word != cell.word
            for key, cell in self.before.items()
        )
        return [
            f"Of {total} commands that a role has the privilege for {failing} fail before, {self.failing(self.after)}"
            " after.",
            "Every command that worked before does the same after."
            if not lost
            else f"{lost} commands that worked before do something else after.",
            *self.notes,
        ]


def of_audit(connection: Connection, present: Audit, *, counted: bool = True, **timeouts: t.Any) -> Matrix:
    """The present state. ``counted``: with the rows that a sample of people sees."""
    result, users = _present(connection, present, counted=counted, **timeouts)
    if counted:
        result.notes.append(_counting(users))
    return result


def of_plan(
    connection: Connection, present: Audit, planned: Plan, *, run: bool, counted: bool = True, **timeouts: t.Any
) -> Matrix:
    """Before a repair and after it. ``run``: PostgreSQL reads the new policies, and the rows that will be visible are
    counted (see ``verification``), all of which is rolled back; without, the plan is taken at its word.
    """
    result, users = _present(connection, present, counted=counted, **timeouts)
    catalog = present.catalog
    if not run or planned.empty:
        left = planned.left
        predicted = {
            (failure.role, failure.relation, failure.command)
            for failure in present.failing
            if not failure.recursive or (failure.role, failure.relation, failure.command) in left
        }
        with transaction(connection, read_only=True, **timeouts) as cursor:
            result.after = _cells(cursor, catalog, result.roles, predicted)
        _keep_rows(result)
        result.notes.append("What comes after is predicted; rows are counted where nothing changes.")
        return result
    with transaction(connection, read_only=False, **timeouts) as cursor:
        before = read(cursor, schemas=planned.schemas, roles=planned.roles)
        for statement in preparations(planned):
            cursor.execute(statement)
        place = prediction.place(cursor)
        now = prediction.predict(cursor, planned, before, place).catalog
        result.after = _cells(cursor, now, result.roles, _predicted(now, present))
        if counted:
            changed = {relation.oid for relation in now.relations.values() if relation.qualified in touched(planned)}
            visibility = Visibility(cursor, now, changed, place)
            _count(cursor, now, result.roles, result.after, users, visibility)
    if counted:
        result.notes.append(_counting(users))
    return result


def _predicted(now: Catalog, present: Audit) -> t.Set[t.Tuple[str, str, str]]:
    """The accesses that will fail: with a recursion, or with another error as they do now."""
    simulator = Simulator(now)
    failing = {
        (who.name, relation.qualified, variant)
        for who, relation, variant in accesses(now)
        if simulator.check(who, relation, variant)
    }
    return failing | {
        (failure.role, failure.relation, failure.command) for failure in present.failing if not failure.recursive
    }


def of_repair(
    connection: Connection, matrix: Matrix, users: t.Sequence[compare.User], present: Audit, **timeouts: t.Any
) -> Matrix:
    """Completes ``matrix``, which was made before the repair, with what is there now."""
    now = audit(connection, schemas=_list(present.catalog.schemas), roles=present.catalog.asked_roles, **timeouts)
    matrix.after = _later(connection, matrix.roles, now, users, timeouts)
    return matrix


def before_repair(
    connection: Connection, present: Audit, **timeouts: t.Any
) -> t.Tuple[Matrix, t.Sequence[compare.User]]:
    """The first half of ``of_repair``, and the people who are tried in both."""
    result, users = _present(connection, present, counted=True, **timeouts)
    result.notes.append(_counting(users))
    return result, users


def _list(names: t.Optional[t.Collection[str]]) -> t.Optional[t.List[str]]:
    return None if names is None else sorted(names)


def _counting(users: t.Sequence[compare.User]) -> str:
    people = max(0, len(users) - 2)
    return f"Rows: as seen by {people} people out of the data, by somebody whom no row names, and by nobody signed in."


def _keep_rows(matrix: Matrix) -> None:
    """What was counted before holds for what does not change."""
    later = matrix.after or {}
    for key, cell in matrix.before.items():
        if key in later and later[key].word == cell.word:
            later[key] = cell


def _present(
    connection: Connection, present: Audit, *, counted: bool, **timeouts: t.Any
) -> t.Tuple[Matrix, t.Sequence[compare.User]]:
    catalog = present.catalog
    failing = {(failure.role, failure.relation, failure.command) for failure in present.failing}
    relations = _relations(catalog)
    with transaction(connection, read_only=True, **timeouts) as cursor:
        groups = _groups(cursor, catalog)
        cells = _cells(cursor, catalog, groups, failing)
        users: t.Sequence[compare.User] = ()
        if counted:
            touched = [relation.oid for relation in relations if relation.kind in ("r", "p")]
            users = compare.users(cursor, catalog, touched, count=COUNTED_USERS)
            _count(cursor, catalog, groups, cells, users)
    names = [relation.qualified for relation in relations]
    return Matrix(catalog.database, groups, names, cells), users


def _place(members: t.Tuple[str, ...]) -> t.Tuple[int, str]:
    places = [SUPABASE_ROLES.index(name) for name in members if name in SUPABASE_ROLES]
    return min(places, default=len(SUPABASE_ROLES)), members[0]


def _groups(cursor: Cursor, catalog: Catalog) -> t.Dict[str, t.Tuple[str, ...]]:
    """The role classes, split where members have other privileges; for each the role that speaks for it."""
    groups: t.Dict[t.Tuple[str, t.Tuple[t.Any, ...]], t.List[str]] = {}
    rights = _rights(cursor, catalog)
    relations = [relation.oid for relation in _relations(catalog)]
    for who in catalog.classes:
        for member in sorted(who.members, key=lambda name: name != who.name):
            mine = tuple(tuple(rights.get((member, oid), {}).get(command) for command in COMMANDS) for oid in relations)
            groups.setdefault((who.name, mine), []).append(member)
    found = {members[0]: tuple(sorted(members)) for members in groups.values()}
    return {name: found[name] for name in sorted(found, key=lambda name: _place(found[name]))}


def _rights(cursor: Cursor, catalog: Catalog) -> t.Dict[t.Tuple[str, int], t.Dict[str, t.Any]]:
    """(role, relation) and whether the role may SELECT, INSERT, UPDATE, DELETE there."""
    members = sorted({member for who in catalog.classes for member in who.members})
    values = {"roles": members, "relations": [relation.oid for relation in _relations(catalog)]}
    return {(row["role"], row["relation"]): row for row in rows(cursor, _RIGHTS, values)}


def _later(
    connection: Connection,
    groups: t.Dict[str, t.Tuple[str, ...]],
    now: Audit,
    users: t.Sequence[compare.User],
    timeouts: t.Mapping[str, t.Any],
) -> Cells:
    """The cells of now for the groups of before; a policy that was split may have split a class of roles."""
    failing = {(failure.role, failure.relation, failure.command) for failure in now.failing}
    with transaction(connection, read_only=True, **timeouts) as cursor:
        cells = _cells(cursor, now.catalog, groups, failing)
        if users:
            _count(cursor, now.catalog, groups, cells, users)
    return cells


def _relations(catalog: Catalog) -> t.List[Relation]:
    return [
        relation
        for relation in catalog.relations.values()
        if catalog.audited(relation)
        and not relation.extension
        and ((relation.kind in ("r", "p") and (relation.secured or relation.policies)) or relation.kind == "v")
        and any(relation.schema in who.schemas for who in catalog.classes)
    ]


def _cells(
    cursor: Cursor,
    catalog: Catalog,
    groups: t.Mapping[str, t.Tuple[str, ...]],
    failing: t.Collection[t.Tuple[str, str, str]],
) -> Cells:
    simulator = Simulator(catalog)
    rights = _rights(cursor, catalog)
    classes = {member: who for who in catalog.classes for member in who.members}
    result: Cells = {}
    for name in groups:
        who = classes.get(name)
        for relation in _relations(catalog) if who is not None else ():
            right = rights.get((name, relation.oid))
            if who is None or right is None or relation.schema not in who.schemas:
                continue
            for command, variants in COMMANDS.items():
                if relation.kind == "v" and command != "SELECT":
                    continue
                word = _word(simulator, who, relation, command, variants, failing)
                result[name, relation.qualified, command] = Cell(word if right[command] else DENIED)
    return result


def _word(
    simulator: Simulator,
    who: RoleClass,
    relation: Relation,
    command: str,
    variants: t.Sequence[str],
    failing: t.Collection[t.Tuple[str, str, str]],
) -> str:
    asked = variants[:1] if relation.kind == "v" else variants
    failed = [variant for variant in asked if (who.name, relation.qualified, variant) in failing]
    if asked[0] in failed:
        return FAILS
    if failed:
        return PARTLY
    if relation.kind == "v":
        return WORKS
    if simulator.exempt(relation, who.oid):
        return OPEN
    if not all(simulator.applied(relation, who.oid, variant)[0] for variant in _NEEDED[command]):
        return NOTHING
    return WORKS


def _count(
    cursor: Cursor,
    catalog: Catalog,
    groups: t.Mapping[str, t.Tuple[str, ...]],
    cells: Cells,
    users: t.Sequence[compare.User],
    visibility: t.Optional[Visibility] = None,
) -> None:
    """Puts the rows into the cells of SELECT that work; an error that only shows when rows are read makes one fail.
    ``visibility`` writes the queries for a catalog that is predicted.
    """
    classes = {member: who for who in catalog.classes for member in who.members}
    asked = {"roles": list(groups), "set": "SET" if cursor.connection.server_version >= 160000 else "MEMBER"}
    settable = {
        row["role"]: dataclasses.replace(classes[row["role"]], name=row["role"])
        for row in rows(cursor, _SETTABLE, asked)
        if row["role"] in classes
    }
    chosen = [
        (role, relation)
        for (role, relation, command), cell in cells.items()
        if command == "SELECT" and cell.word in (WORKS, OPEN) and role in settable
    ]
    names = list(dict.fromkeys(relation for _role, relation in chosen))[:COUNTED_RELATIONS]
    wanted = set(names)
    counted = {relation.qualified: relation for relation in catalog.relations.values() if relation.qualified in wanted}
    counting = compare.Counting(cursor, catalog, [relation.oid for relation in counted.values()])
    questions: t.List[compare.Question] = []
    for role, relation in chosen:
        if relation not in wanted:
            continue
        query = counting.direct(counted[relation])
        if visibility is not None:
            try:
                query = counting.query(counted[relation], *visibility.source(settable[role], counted[relation]))
            except Refused:
                cells[role, relation, "SELECT"] = Cell(FAILS)
                continue
            except Unmeasured:
                continue
        questions += [compare.Question(settable[role], user, relation, query) for user in users]
    seen = compare.measure(cursor, catalog, questions)
    for role, relation in chosen:
        answers = [seen[role, user, relation] for user in users if (role, user, relation) in seen]
        key = (role, relation, "SELECT")
        counts = [answer.rows for answer in answers if not answer.state]
        if counts:
            cells[key] = Cell(cells[key].word, (min(counts), max(counts)))
        elif answers and all(answer.state in ("42501", "54001", oracle.RECURSION) for answer in answers):
            cells[key] = Cell(FAILS)


def text(matrix: Matrix) -> str:
    """The matrix for a terminal or a file."""
    lines = [f"Who can do what in {matrix.database}", "", *matrix.sentences, ""]
    first, rest = matrix.ordered()
    for heading, names in ((None, first), ("Unchanged:" if matrix.after is not None else None, rest)):
        if names and heading:
            lines += [heading, ""]
        for relation in names:
            lines += _block(matrix, relation)
    lines += [f"{word}: {meaning}" for word, meaning in matrix.meanings.items()]
    return "\n".join(lines) + "\n"


def _block(matrix: Matrix, relation: str) -> t.List[str]:
    table = [["", *COMMANDS]]
    for role, pairs in matrix.rows_of(relation):
        table.append([role, *(arrow(before, after) for before, after in pairs)])
    widths = [max(len(row[number]) for row in table) for number in range(5)]
    lines = [relation]
    for row in table:
        lines.append("  " + "  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip())
    return [*lines, ""]


def arrow(before: t.Optional[Cell], after: t.Optional[Cell]) -> str:
    """``before -> after``, or one where they are the same or there is only one."""
    if before is None:
        return "-" if after is None else after.text
    if after is None or after == before:
        return before.text
    return f"{before.text} -> {after.text}"
