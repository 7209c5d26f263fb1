# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Findings beyond the recursion itself. What they say comes from node trees and from PostgreSQL's own canonical text of
an expression; parsing 5,000 policies as SQL would take longer than all the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing as t

from ..model import policies, tree, wrap
from ..model.catalog import COMMANDS, Catalog, Expression, Function, Policy, Relation
from ..model.findings import Finding
from ..model.transactions import Cursor, rows
from . import meanings, openings
from .oracle import Failure
from .simulate import Simulator

_NAME = r'(?:[^\W\d][\w$]*|"(?:[^"]|"")+")'
_IDENTITY = r"(?:auth\.(?:uid|role|email|jwt)\(\)|current_setting\()"
#: Strings and quoted names are skipped; a call is taken with what stands before it.
_CALL = re.compile(
    r"E?'(?:[^'\\]|''|\\.)*'|\"(?:[^\"]|\"\")*\"|(?P<wrapped>\( SELECT"
    r" )?(?P<call>auth\.(?P<name>uid|role|email|jwt)\(\)"
    r"|current_setting\('(?:[^']|'')*'::text(?:, (?:true|false))?\))(?P<alias> AS \w+\))?"
)
#: ``alias.column = <identity>``, ``column IN (SELECT``, ``column = ANY (ARRAY(SELECT`` and the other way round.
_LOOKUP = re.compile(
    rf"(?<![\w\".])(?:(?P<alias>{_NAME})\.)?(?P<column>{_NAME})\)?(?:::[\w ]+)? "
    rf"(?:= (?:\( ?SELECT )?\(*{_IDENTITY}|IN \( ?SELECT|= ANY ?\(\(? ?ARRAY\( ?SELECT)"
)
_LOOKUP_LEFT = re.compile(
    r"(?:auth\.(?:uid|role|email)\(\)|current_setting\([^()]*\))(?: AS \w+\))?\)*(?:::\w+)? ="
    rf" \(?(?:(?P<alias>{_NAME})\.)?(?P<column>{_NAME})(?![\w\".(])"
)
#: ``alias.column = alias.column``: where a policy recurses, its repair looks rows up by one of the two.
_CORRELATED = (
    re.compile(rf"(?<![\w\".])(?P<alias>{_NAME})\.(?P<column>{_NAME}) = {_NAME}\.{_NAME}(?![\w\".(])"),
    re.compile(rf"(?<![\w\".]){_NAME}\.{_NAME} = (?P<alias>{_NAME})\.(?P<column>{_NAME})(?![\w\".(])"),
)
#: ``(column)::type = <identity>`` and ``lower(column) = <identity>``.
_CONVERTED = re.compile(
    rf"(?:(?P<function>lower|upper|btrim)\(\(?|\()(?:(?P<alias>{_NAME})\.)?(?P<column>{_NAME})\)"
    rf"(?:::(?P<type>[\w ]+?))?\)?"
    rf" = (?:\( ?SELECT )?\(*{_IDENTITY}"
)
_CONVERSION = re.compile(r"\b(?:lower|upper|btrim)\(")
_SOURCE = re.compile(rf"(?:FROM|JOIN|,) \(*(?:ONLY )?(?P<schema>{_NAME})\.(?P<table>{_NAME})(?: (?P<alias>{_NAME}))?")
_NOT_ALIAS = frozenset("where on join left right inner full cross group order limit union having natural".split(" "))  # noqa: SIM905 - words


def recursion(read: Catalog, failing: t.Sequence[Failure]) -> t.List[Finding]:
    """One finding for every relation and path, with the roles and commands that meet it."""
    groups: t.Dict[t.Tuple[str, t.Tuple[str, ...], str], t.List[Failure]] = {}
    for failure in failing:
        groups.setdefault((failure.relation, tuple(failure.witness), failure.sqlstate), []).append(failure)
    result = []
    for (relation, path, state), members in groups.items():
        commands = sorted({member.command for member in members})
        roles = sorted({role for member in members for role in member.roles})
        details = {"table": relation, "commands": commands, "roles": roles, "path": list(path), "sqlstate": state}
        if members[0].recursive:
            why = (
                f"{', '.join(commands)} as {', '.join(roles)} fail with {members[0].message!r}:"
                f" {' -> '.join(path) or 'through a rule'}."
            )
            result.append(
                Finding(
                    "recursion",
                    relation,
                    why,
                    "-- wheels-ops rls repair, or the module rls_repair",
                    details=details,
                )
            )
        else:
            why = f"{', '.join(commands)} as {', '.join(roles)} fail with {state}: {members[0].message}"
            result.append(Finding("rewrite_error", relation, why, details=details))
    return result


class Review:
    """Everything else that is worth a person's attention: first from the catalog alone, then with the server's answers.

    Only ``findings()`` uses the cursor, so that the server can work for others while this is made. ``leading`` is that
    of ``leading()``.
    """

    def __init__(self, cursor: Cursor, read: Catalog, leading: t.Dict[int, t.Set[str]]) -> None:
        self._cursor = cursor
        self._read = read
        self._leading = leading
        self._found: t.List[Finding] = []
        self._bare: t.Set[int] = set()
        self._wanted: t.Dict[t.Tuple[int, str], t.Set[str]] = {}
        self._converted: Converted = {}
        self._users = read.by_name("auth", "users")
        self._look()
        self._reading = _reading(read, self._users)

    def _look(self) -> None:
        """What tables and policies say by themselves."""
        result, read = self._found, self._read
        for relation in read.relations.values():
            if not read.audited(relation):
                continue
            if relation.policies and not relation.secured and relation.kind in ("r", "p"):
                why = (
                    f"{len(relation.policies)} policies have no effect: row-level security is off, and everybody with a"
                    " grant sees every row."
                )
                statement = f"ALTER TABLE {relation.qualified} ENABLE ROW LEVEL SECURITY;"
                result.append(
                    Finding(
                        "policy_without_rls", relation.qualified, why, statement, details={"table": relation.qualified}
                    )
                )
            if relation.secured and not relation.policies and not relation.extension:
                why = "Nobody but the owner and roles with BYPASSRLS sees a row. If that is meant, nothing is wrong."
                result.append(
                    Finding("rls_without_policy", relation.qualified, why, details={"table": relation.qualified})
                )
            for policy in relation.policies:
                result += _policy(read, relation, policy, self._bare, self._users)
            _unindexed(read, relation, self._leading, self._wanted)
            _converted(read, relation, self._leading, self._converted)
            result += _multiple(read, relation)

    def findings(self, working: t.Callable[[], t.Iterable[t.Tuple[t.Any, Relation, str]]]) -> t.List[Finding]:
        """All of them. ``working`` gives the accesses that PostgreSQL accepts."""
        read, cursor = self._read, self._cursor
        result = [
            *self._found,
            *(
                _index_finding(read.relations[oid], column, sorted(names))
                for (oid, column), names in _columns(cursor, self._wanted).items()
            ),
        ]
        result += _unindexable(cursor, read, self._converted)
        latent = _latent(read, self._bare, working)
        result = latent + [_cautious(finding, latent) for finding in result]
        result += _denied(cursor, read, self._reading)
        result += _functions(cursor, read)
        return result


def _about(relation: Relation, policy: Policy) -> str:
    return f"{relation.qualified}: {policy.name}"


def _details(relation: Relation, policy: Policy, **more: t.Any) -> t.Dict[str, t.Any]:
    return {
        "table": relation.qualified,
        "policy": policy.name,
        "command": COMMANDS[policy.command],
        "roles": list(policy.role_names),
        **more,
    }


def _policy(
    read: Catalog, relation: Relation, policy: Policy, bare: t.Set[int], users: t.Optional[Relation]
) -> t.List[Finding]:
    result = []
    name = _about(relation, policy)
    calls: t.Dict[str, int] = {}
    nested = 0
    compared: t.List[str] = []
    reads_users = False
    for expression in (policy.using, policy.check):
        if expression is None:
            continue
        if not read.identity.keys().isdisjoint(expression.functions):
            open_calls, _ignored, twice = expression.identity_calls(read.identity)
            nested += twice
            for oid, count in open_calls.items():
                calls[read.identity[oid]] = calls.get(read.identity[oid], 0) + count
        if expression.has_sublink or " = " in expression.text:
            compared += expression.self_comparisons()
        reads_users = reads_users or (users is not None and users.oid in expression.relations)
    if calls:
        bare.add(policy.oid)
        calls_text = ", ".join(
            f"{called.replace('pg_catalog.', '')}() x {count}" for called, count in sorted(calls.items())
        )
        why = f"{calls_text} runs for every row that is looked at. In a sub-select it runs once for a query."
        result.append(
            Finding(
                "unwrapped_auth",
                name,
                why,
                functools.partial(_wrapped, relation, policy),
                details=_details(relation, policy, calls=calls),
            )
        )
    if nested:
        why = (
            f"{nested} sub-selects hold nothing but another one, as repeated search-and-replace leaves them. They are"
            " useless and hide the policy's meaning."
        )
        result.append(
            Finding(
                "nested_wraps",
                name,
                why,
                functools.partial(_wrapped, relation, policy, parse=True),
                details=_details(relation, policy),
            )
        )
    if compared:
        why = (
            f"{compared[0]} is true for every row that is not NULL: an unqualified column inside the sub-select is that"
            " of the inner table. The policy lets through what its author meant to compare with the outer row."
        )
        advice = "-- Qualify the column with the table that was meant; which one only its author knows."
        result.append(
            Finding("captured_column", name, why, advice, details=_details(relation, policy, comparisons=compared))
        )
    if reads_users:
        why = (
            "Roles of the API may not read auth.users, so that the policy fails with 42501 for them (often only once"
            " another error is out of the way), and must not be granted it."
        )
        advice = (
            "-- Use the token: (SELECT auth.jwt() ->> 'email'), or a SECURITY DEFINER function in a schema that is not"
            " exposed."
        )
        result.append(Finding("reads_auth_users", name, why, advice, details=_details(relation, policy)))
    result += _always_true(relation, policy)
    return result


def _always_true(relation: Relation, policy: Policy) -> t.List[Finding]:
    writes = policy.command != "r"
    using, check = meanings.always(policy.using), meanings.always(policy.check)
    if not (using or check) or set(policy.role_names) <= {"service_role"}:
        return []
    if not policy.permissive:
        why = f"A RESTRICTIVE policy that is always true narrows nothing, here for {', '.join(policy.role_names)}."
    else:
        meaning = (
            "every row may be read"
            if not writes
            else "every row may be written"
            if check or policy.check is None
            else "every row may be reached"
        )
        why = f"{meaning} by {', '.join(policy.role_names)}, whatever the other permissive policies say."
    advice = f"-- If it is not meant: DROP POLICY {policy.quoted} ON {relation.qualified};"
    return [
        Finding(
            "always_true",
            _about(relation, policy),
            why,
            advice,
            "warning" if writes else "info",
            _details(relation, policy),
        )
    ]


def _wrapped(relation: Relation, policy: Policy, *, parse: bool = False) -> str:
    """ALTER POLICY with the identity calls wrapped.

    Textual where PostgreSQL's canonical text leaves no doubt, which is nearly always.
    """
    texts = {}
    for slot in ("using", "check"):
        expression = policy.slot(slot)
        texts[slot] = None if expression is None else _wrap_text(expression, parse)
    old = policies.original(policy)
    return (
        policies.Piece(old.name, old.command, old.permissive, old.roles, texts["using"], texts["check"]).alter(
            relation.qualified
        )
        + ";"
    )


def _wrap_text(expression: Expression, parse: bool) -> str:
    text = expression.text
    if (
        parse
        or "SELECT (" in text
        or "SELECT current_setting" in text
        or ("( SELECT auth." in text and " AS " not in text)
    ):
        holder = tree.parse(text)
        return tree.show(holder.val) if wrap.wrap(holder) else text

    def replaced(match: t.Match[str]) -> str:
        if not match["call"] or match["wrapped"]:
            return match[0]
        return f"( SELECT {match['call']})" + (match["alias"] or "")

    return _CALL.sub(replaced, text)


# -- more than one policy ----------------------------------------------------------------------------------------------


def _multiple(read: Catalog, relation: Relation) -> t.List[Finding]:
    if sum(policy.permissive for policy in relation.policies) < 2 or not relation.secured:
        return []
    groups: t.Dict[t.Tuple[str, ...], t.Dict[str, t.Set[str]]] = {}
    for who in read.classes:
        memberships = who.held | {who.oid, 0}
        mine = [
            policy for policy in relation.policies if policy.permissive and not memberships.isdisjoint(policy.roles)
        ]
        for command in ("r", "a", "w", "d"):
            names = tuple(policy.name for policy in mine if policy.command in ("*", command))
            if len(names) > 1:
                groups.setdefault(names, {}).setdefault(COMMANDS[command], set()).update(who.members)
    result = []
    for names, commands in groups.items():
        roles = sorted({role for members in commands.values() for role in members})
        why = (
            f"{', '.join(commands)} as {', '.join(roles)} evaluate {len(names)} permissive policies for each row:"
            f" {', '.join(names)}."
        )
        alike = _alike(relation, names)
        statement: t.Union[str, t.Callable[[], str]] = "-- Write them as one policy per role and command, joined by OR."
        if alike:
            statement = functools.partial(merged, relation, alike)
        details = {"table": relation.qualified, "policies": list(names), "commands": list(commands), "roles": roles}
        result.append(
            Finding("multiple_permissive", f"{relation.qualified}: {', '.join(names)}", why, statement, details=details)
        )
    return result


def _alike(relation: Relation, names: t.Collection[str]) -> t.List[Policy]:
    """Of these policies those that differ in nothing but their expressions; none where fewer than two do."""
    groups: t.Dict[t.Tuple[str, t.Tuple[str, ...]], t.List[Policy]] = {}
    for policy in relation.policies:
        if policy.name in names and policy.permissive:
            groups.setdefault((policy.command, tuple(sorted(policy.role_names))), []).append(policy)
    return next((members for members in groups.values() if len(members) > 1), [])


def merge(members: t.Sequence[policies.Piece]) -> policies.Piece:
    """One policy with the meaning of several permissive ones of the same roles and command: PostgreSQL joins them by OR
    as well.
    """

    def either(texts: t.List[t.Optional[str]]) -> t.Optional[str]:
        distinct = list(dict.fromkeys(text for text in texts if text is not None))
        return (
            None
            if not distinct
            else distinct[0]
            if len(distinct) == 1
            else " OR ".join(f"({text})" for text in distinct)
        )

    first = members[0]
    using = [piece.using for piece in members]
    check = [piece.using if piece.check is None else piece.check for piece in members]
    checked = any(piece.check is not None for piece in members)
    return policies.Piece(
        first.name, first.command, True, first.roles, either(using), either(check) if checked else None
    )


def merged(relation: Relation, members: t.Sequence[Policy]) -> str:
    """The statements that put one policy in the place of several."""
    change = policies.Change(relation, list(members), [merge([policies.original(policy) for policy in members])])
    return ";\n".join(change.apply()) + ";"


# -- indexes -----------------------------------------------------------------------------------------------------------


def leading(cursor: Cursor) -> t.Dict[int, t.Set[str]]:
    """The first columns of every usable index, quoted as PostgreSQL prints them."""
    columns: t.Dict[int, t.Set[str]] = {}
    query = (
        "select i.indrelid::bigint as relation, quote_ident(a.attname) as name from pg_catalog.pg_index i join"
        " pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] where i.indisvalid and"
        " i.indpred is null"
    )
    for row in rows(cursor, query):
        columns.setdefault(row["relation"], set()).add(row["name"])
    return columns


def _unindexed(
    read: Catalog,
    relation: Relation,
    leading: t.Dict[int, t.Set[str]],
    columns: t.Dict[t.Tuple[int, str], t.Set[str]],
    later: t.Sequence[t.Tuple[str, str]] = (),
) -> None:
    for policy in relation.policies:
        for expression in (policy.using, policy.check):
            if expression is not None:
                _look(
                    read, relation, expression.text, expression.has_sublink, _about(relation, policy), leading, columns
                )
    for name, text in later:
        _look(read, relation, text, True, f"{relation.qualified}: {name}", leading, columns)


def _look(
    read: Catalog,
    relation: Relation,
    text: str,
    has_sublink: bool,
    about: str,
    leading: t.Dict[int, t.Set[str]],
    columns: t.Dict[t.Tuple[int, str], t.Set[str]],
) -> None:
    places = sources(read, relation, text, has_sublink)
    correlated = _CORRELATED if has_sublink and relation.oid in read.circular() else ()
    for pattern in (_LOOKUP, _LOOKUP_LEFT, *correlated):
        for place in pattern.finditer(text):
            table = places.get(place["alias"] or "")
            if table is not None and table.kind in ("r", "p") and place["column"] not in leading.get(table.oid, ()):
                columns.setdefault((table.oid, place["column"]), set()).add(about)


#: (table, column quoted, whether a function converts it rather than a cast) and the policies that do.
Converted = t.Dict[t.Tuple[int, str, bool], t.Set[str]]


def _converted(read: Catalog, relation: Relation, leading: t.Dict[int, t.Set[str]], wanted: Converted) -> None:
    for policy in relation.policies:
        for expression in (policy.using, policy.check):
            if expression is None or not (")::" in expression.text or _CONVERSION.search(expression.text)):
                continue
            for place in _CONVERTED.finditer(expression.text):
                table = sources(read, relation, expression.text, expression.has_sublink).get(place["alias"] or "")
                if table is not None and place["column"] in leading.get(table.oid, ()):
                    key = (table.oid, place["column"], bool(place["function"]))
                    wanted.setdefault(key, set()).add(_about(relation, policy))


def _unindexable(cursor: Cursor, read: Catalog, wanted: Converted) -> t.Iterator[Finding]:
    """Columns with an index that a policy converts before it compares them, so that the index does not help."""
    if not wanted:
        return
    # A cast from varchar to text changes nothing and keeps the index; an index on an expression may be the right one.
    cursor.execute(
        "select w.relation::bigint, w.name, w.called from unnest(%s::oid[], %s::text[], %s::boolean[]) as w(relation,"
        " name, called) join pg_catalog.pg_attribute a on a.attrelid = w.relation and quote_ident(a.attname) = w.name"
        " and a.attnum > 0 where (w.called or not exists (select from pg_catalog.pg_type t where t.oid = a.atttypid and"
        " t.typcategory = 'S')) and not exists (select from pg_catalog.pg_index i where i.indrelid = w.relation and"
        " i.indexprs is not null)",
        ([key[0] for key in wanted], [key[1] for key in wanted], [key[2] for key in wanted]),
    )
    for oid, column, called in cursor.fetchall():
        table, names = read.relations[oid], sorted(wanted[oid, column, called])
        why = f"{', '.join(names)} convert it before they compare it, so that its index does not help."
        advice = "-- Convert the other side of the comparison, or create an index on the expression."
        details = {"table": table.qualified, "column": column, "policies": names}
        yield Finding("unindexable_comparison", f"{table.qualified}.{column}", why, advice, details=details)


def _columns(cursor: Cursor, wanted: t.Dict[t.Tuple[int, str], t.Set[str]]) -> t.Dict[t.Tuple[int, str], t.Set[str]]:
    """Without the words of the language that stand where a column could (``auth.uid() = ANY (members)``)."""
    if not wanted:
        return wanted
    cursor.execute(
        "select w.relation::bigint, w.name from unnest(%s::oid[], %s::text[]) as w(relation, name) join"
        " pg_catalog.pg_attribute a on a.attrelid = w.relation and quote_ident(a.attname) = w.name and a.attnum > 0 and"
        " not a.attisdropped",
        ([oid for oid, _name in wanted], [name for _oid, name in wanted]),
    )
    there = set(cursor.fetchall())
    return {key: names for key, names in wanted.items() if key in there}


def unindexed(
    cursor: Cursor, read: Catalog, later: t.Mapping[int, t.Sequence[t.Tuple[str, str]]]
) -> t.List[t.Tuple[Relation, str]]:
    """(table, column quoted) of every column by which policies look rows up and with which no index begins.

    ``later``: for a table's oid (policy, expression) as they will be.
    """
    begins = leading(cursor)
    columns: t.Dict[t.Tuple[int, str], t.Set[str]] = {}
    for relation in read.relations.values():
        _unindexed(read, relation, begins, columns, later.get(relation.oid, ()))
    return [(read.relations[oid], column) for oid, column in _columns(cursor, columns)]


def _index_finding(table: Relation, column: str, names: t.List[str]) -> Finding:
    why = (
        f"Policies look rows up by it ({', '.join(names)}), and no index begins with it: every query reads the whole"
        " table."
    )
    statement = f"CREATE INDEX CONCURRENTLY ON {table.qualified} ({column});"
    details = {"table": table.qualified, "column": column, "policies": names}
    return Finding("unindexed_column", f"{table.qualified}.{column}", why, statement, details=details)


def sources(read: Catalog, relation: Relation, text: str, has_sublink: bool) -> t.Dict[str, Relation]:
    """What the aliases in an expression stand for; "" and the table's own name are the policy's table."""
    found = {"": relation, relation.qualified.rpartition(".")[2]: relation}
    for place in _SOURCE.finditer(text) if has_sublink else ():
        table = read.by_name(_bare(place["schema"]), _bare(place["table"]))
        alias = place["alias"] if place["alias"] and place["alias"].lower() not in _NOT_ALIAS else place["table"]
        if table is not None:
            found[alias] = table
    return found


def _bare(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


# -- what is hidden ----------------------------------------------------------------------------------------------------


def _latent(
    read: Catalog, bare: t.Set[int], working: t.Callable[[], t.Iterable[t.Tuple[t.Any, Relation, str]]]
) -> t.List[Finding]:
    """What would break if every identity call were wrapped, as linters advise."""
    mine = {policy.oid for policy in read.policies() if policy.oid in bare and not policy.has_sublink}
    if not mine:
        return []
    then = Simulator(read, sublinks=mine)
    groups: t.Dict[t.Tuple[str, t.Tuple[str, ...]], t.Tuple[t.Set[str], t.Set[str]]] = {}
    for who, relation, variant in working():
        path = then.check(who, relation, variant)
        if path:
            commands, roles = groups.setdefault((relation.qualified, tuple(then.words(path))), (set(), set()))
            commands.add(variant)
            roles.update(who.members)
    result = []
    for (table, words), (commands, roles) in groups.items():
        why = (
            f"{', '.join(sorted(commands))} work today, but fail with 42P17 for {', '.join(sorted(roles))} as soon as"
            " the identity calls below are wrapped in a sub-select, as performance linters advise:"
            f" {' -> '.join(words)}."
        )
        details = {"table": table, "commands": sorted(commands), "roles": sorted(roles), "path": list(words)}
        advice = "-- Leave auth.uid() as it is there, or let rls_repair wrap it: fix: [recursion, initplan]"
        result.append(Finding("latent_recursion", table, why, advice, details=details))
    return result


def _cautious(finding: Finding, latent: t.Sequence[Finding]) -> Finding:
    """Does not advise to wrap a call where that would bring a recursion about."""
    tables = {step.partition(" (")[0] for one in latent for step in one.details["path"]}
    short = str(finding.details.get("table", "")).replace("public.", "", 1)
    if finding.kind not in ("unwrapped_auth", "nested_wraps") or not {short, finding.details.get("table")} & tables:
        return finding
    advice = (
        "-- Not by hand: it would make accesses fail with 42P17 (see latent_recursion). rls_repair with fix:"
        " [recursion, initplan] does what is safe."
    )
    return dataclasses.replace(finding, statement=advice)


Reading = t.Dict[t.Tuple[int, int], t.Set[t.Tuple[int, int, str]]]


def _reading(read: Catalog, users: t.Optional[Relation]) -> Reading:
    """For (role, table): the policies, with their tables and in words, that read that table with the role's rights."""
    simulator = Simulator(read)
    pairs: Reading = {}
    for who in read.classes:
        for relation in read.relations.values():
            if (
                not relation.secured
                or not relation.references()
                or not read.audited(relation)
                or relation.schema not in who.schemas
            ):
                continue
            memberships = who.held | {who.oid, 0}
            for policy in relation.policies:
                if memberships.isdisjoint(policy.roles) or simulator.exempt(relation, who.oid):
                    continue
                for target in {
                    oid for expression in (policy.using, policy.check) if expression for oid in expression.relations
                }:
                    if target != relation.oid and target in read.relations and (users is None or target != users.oid):
                        label = f'{COMMANDS[policy.command]} policy "{policy.name}"'
                        pairs.setdefault((who.oid, target), set()).add((relation.oid, policy.oid, label))
    return pairs


def _denied(cursor: Cursor, read: Catalog, pairs: Reading) -> t.List[Finding]:
    """Tables that a policy reads with the caller's rights, and that the caller may not read."""
    if not pairs:
        return []
    query = """
    select p.role::bigint, p.inner::bigint, p.outer::bigint
      from unnest(%(roles)s::oid[], %(inners)s::oid[], %(outers)s::oid[]) as p(role, "inner", "outer")
     where not has_any_column_privilege(p.role, p.inner, 'SELECT') and has_any_column_privilege(p.role, p.outer, 'SELECT, INSERT, UPDATE')
    """
    flat = sorted(
        {(role, inner, outer) for (role, inner), places in pairs.items() for outer, _first, _second in places}
    )
    values = {
        "roles": [triple[0] for triple in flat],
        "inners": [triple[1] for triple in flat],
        "outers": [triple[2] for triple in flat],
    }
    names = {who.oid: who for who in read.classes}
    groups: t.Dict[t.Tuple[int, int, int, str], t.Set[str]] = {}
    for row in rows(cursor, query, values):
        for outer, policy_oid, label in pairs[row["role"], row["inner"]]:
            if outer == row["outer"]:
                groups.setdefault((outer, row["inner"], policy_oid, label), set()).update(names[row["role"]].members)
    result = []
    for (outer, inner, _ignored, label), roles in sorted(groups.items()):
        table, below = read.relations[outer], read.relations[inner]
        listed = sorted(roles)
        why = (
            f"{label} reads {below.short}, which {', '.join(listed)} may not: the access fails with 42501, perhaps only"
            " once another error is out of the way."
        )
        grant = f"GRANT SELECT ON {below.qualified} TO {', '.join(tree.quote(role) for role in listed)};"
        details = {"table": table.qualified, "reads": below.qualified, "roles": listed}
        result.append(Finding("inner_table_denied", f"{table.qualified}: {label}", why, grant, details=details))
    return result


# -- functions ---------------------------------------------------------------------------------------------------------


def _functions(cursor: Cursor, read: Catalog) -> t.List[Finding]:
    mine = [
        function
        for function in read.functions.values()
        if function.definer and not function.extension and (read.schemas is None or function.schema in read.schemas)
    ]
    if not mine:
        return []
    callers: t.Dict[int, t.List[str]] = {}
    query = """
    select f.oid::bigint as function, r.rolname::text as role
      from unnest(%(functions)s::oid[]) as f(oid) join pg_catalog.pg_proc p on p.oid = f.oid, unnest(%(roles)s::oid[]) as u(oid)
      join pg_catalog.pg_roles r on r.oid = u.oid
     where has_function_privilege(u.oid, f.oid, 'EXECUTE') and has_schema_privilege(u.oid, p.pronamespace, 'USAGE')
     order by 1, 2
    """
    for row in rows(
        cursor, query, {"functions": [one.oid for one in mine], "roles": [who.oid for who in read.classes]}
    ):
        callers.setdefault(row["function"], []).append(row["role"])
    in_policies = {
        oid
        for policy in read.policies()
        for expression in (policy.using, policy.check)
        for oid in (expression.functions if expression else ())
    }
    result = []
    for function in mine:
        details = {"function": function.signature, "schema": function.schema}
        who = callers.get(function.oid)
        if who and not function.returns_trigger:
            oracle = (
                " It takes a uuid: whoever calls it can ask about anybody."
                if "uuid" in function.signature.partition("(")[2]
                else ""
            )
            why = (
                f"{', '.join(who)} can call it over the API, with the rights of"
                f" {read.role_name(function.owner)}.{oracle}"
            )
            roles = ", ".join(tree.quote(role) for role in who)
            if function.oid in in_policies:
                statement = (
                    f"-- Policies call it. Move it where the API does not look: ALTER FUNCTION {function.signature} SET"
                    " SCHEMA private;"
                )
            else:
                statement = f"REVOKE EXECUTE ON FUNCTION {function.signature} FROM PUBLIC, {roles};"
            result.append(
                Finding("definer_exposed", function.signature, why, statement, details={**details, "roles": who})
            )
        if function.search_path and openings.unqualified(function) and not _ends_in_pg_temp(function.search_path):
            why = (
                f"Its search_path ({function.search_path}) does not name pg_temp, which is then searched first: a"
                " temporary table of its caller stands in for one that its body does not qualify."
            )
            statement = f"ALTER FUNCTION {function.signature} SET search_path = {function.search_path}, pg_temp;"
            result.append(Finding("definer_search_path", function.signature, why, statement, "info", details))
        if function.search_path is None and function.body is None:
            why = (
                "It looks names up in the caller's search_path: whoever may create objects in a schema listed there"
                " decides what it runs."
            )
            statement = (
                f"ALTER FUNCTION {function.signature} SET search_path = '';  -- after qualifying the names in its body"
            )
            result.append(Finding("definer_search_path", function.signature, why, statement, details=details))
        result += _still_bound(read, function, function.oid in in_policies, details)
    return result


def _ends_in_pg_temp(search_path: str) -> bool:
    names = [name.strip(' "') for name in search_path.split(",")]
    return names[-1] in ("pg_temp", "", "''")


def _still_bound(read: Catalog, function: Function, in_policy: bool, details: t.Dict[str, t.Any]) -> t.List[Finding]:
    """A definer that policies call to get around row-level security, whose owner it binds all the same (FORCE, or not
    the table's owner).
    """
    if not in_policy:
        return []
    from ..model.function_bodies import Bodies

    simulator = Simulator(read)
    bound = [
        read.relations[oid]
        for oid, _ignored in sorted(Bodies(read).of(function).relations)
        if oid in read.relations and not simulator.exempt(read.relations[oid], function.owner)
    ]
    if not bound:
        return []
    owner = read.role_name(function.owner)
    tables = ", ".join(relation.short for relation in bound)
    why = (
        f"Policies call it, but row-level security of {tables} binds its owner {owner} as well (FORCE, or another owner"
        " without BYPASSRLS)."
    )
    return [
        Finding(
            "definer_not_bypassing",
            function.signature,
            why,
            f"ALTER ROLE {tree.quote(owner)} BYPASSRLS;",
            details={**details, "tables": tables},
        )
    ]
