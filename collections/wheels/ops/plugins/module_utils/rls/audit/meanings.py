# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a policy's condition says that its author did not mean: true for too many, for nobody, or for the wrong ones.

Everything here comes from the catalog that was read, so that it costs no question to the server. A condition is parsed
as SQL only where its text holds a word that makes one of the findings possible.
"""

from __future__ import annotations

import re
import typing as t

from ..model import tree, wrap
from ..model.catalog import COMMANDS, Catalog, Expression, Policy, Relation
from ..model.findings import Finding
from ..model.roles import API_ROLES
from ..model.tree import Node

_NULL_TEST = re.compile(r" IS (?:NOT )?NULL\b")
_TRUE_OR_FALSE = re.compile(r"(?<![\w.\"'])(?:true|false|1 = [01])(?![\w\"'])")
_PATTERN = re.compile(r" !?~~?\*? ")
_IDENTITY = re.compile(r"\bauth\.(?:uid|role|email|jwt)\(\)|\bcurrent_setting\(")
_EMAIL = re.compile(r"\bauth\.email\(\)|->> 'email'::text")
_ROLE = re.compile(
    r"auth\.role\(\)(?: AS \w+)?\)? = '(?P<left>[^']*)'::text"
    r"|'(?P<right>[^']*)'::text = \(?(?: ?SELECT )?auth\.role\(\)"
)
_CONSTANT = re.compile(r"'[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'::uuid|'[^'@%\s]+@[^'@%\s]+\.[^'@%\s]+'::")
_SETTING = re.compile(r"\bcurrent_setting\('(?P<name>[^'.]+)'::text")
_USING_COLUMN = re.compile(
    r"(?<![\w\".])(?P<left>[a-z_]\w*) = \(?(?: ?SELECT )?\(*(?:auth\.uid\(\)|auth\.jwt\(\)|current_setting\()"
    r"|(?:auth\.uid\(\)(?: AS \w+)?\)*|current_setting\([^()]*\)\)*(?:::\w+)?) = (?P<right>[a-z_]\w*)(?![\w.(])"
)


def findings(read: Catalog) -> t.List[Finding]:
    """All of them, for every table under row-level security that was asked about."""
    result: t.List[Finding] = []
    for relation in read.relations.values():
        if not relation.policies or not relation.secured or not read.audited(relation):
            continue
        if not any(policy.permissive for policy in relation.policies):
            result.append(_only_restrictive(relation))
        for policy in relation.policies:
            if all(_exempt(read, role) for role in policy.roles):
                result.append(_no_effect(relation, policy))
                continue
            result += _policy(read, relation, policy)
    return result


def _about(relation: Relation, policy: Policy) -> str:
    return f"{relation.qualified}: {policy.name}"


def _finding(kind: str, relation: Relation, policy: Policy, why: str, advice: str, severity: str = "") -> Finding:
    details = {
        "table": relation.qualified,
        "policy": policy.name,
        "command": COMMANDS[policy.command],
        "roles": list(policy.role_names),
    }
    return Finding(kind, _about(relation, policy), why, advice, severity, details)


def _exempt(read: Catalog, oid: int) -> bool:
    role = read.roles.get(oid)
    return role is not None and (role.superuser or role.bypass)


def _no_effect(relation: Relation, policy: Policy) -> Finding:
    names = ", ".join(policy.role_names)
    why = f"Row-level security does not bind {names}: the policy has no effect, whatever it says."
    advice = f"-- DROP POLICY {policy.quoted} ON {relation.qualified};"
    return _finding("policy_for_exempt_role", relation, policy, why, advice)


def _only_restrictive(relation: Relation) -> Finding:
    why = "All its policies are RESTRICTIVE, which only narrow what a permissive one lets through: nobody sees a row."
    advice = f"-- CREATE POLICY ... ON {relation.qualified} AS PERMISSIVE ...;"
    return Finding("only_restrictive", relation.qualified, why, advice, details={"table": relation.qualified})


def _policy(read: Catalog, relation: Relation, policy: Policy) -> t.Iterator[Finding]:
    texts = [expression.text for expression in (policy.using, policy.check) if expression is not None]
    if policy.permissive:
        yield from _never(relation, policy)
        yield from _too_many(relation, policy)
        yield from _anonymous_write(relation, policy)
        yield from _given_away(read, relation, policy)
        yield from _any_bucket(relation, policy, texts)
    for text in texts:
        if "'" in text or "auth." in text:
            words = list(_words(read, relation, policy, text))
            if words:
                yield from words
                return


def _expressions(policy: Policy) -> t.Iterator[t.Tuple[str, Expression]]:
    for word, expression in (("USING", policy.using), ("WITH CHECK", policy.check)):
        if expression is not None:
            yield word, expression


# -- true for nobody ---------------------------------------------------------------------------------------------------


def _never(relation: Relation, policy: Policy) -> t.Iterator[Finding]:
    """A permissive policy without the expression that its command needs, or with one that is always false, allows
    nothing (get_row_security_policies() of PostgreSQL).
    """
    needed = policy.check if policy.command == "a" else policy.using
    if needed is None and (policy.command != "*" or policy.check is None):
        slot = "WITH CHECK" if policy.command == "a" else "USING"
        why = f"It has no {slot} expression, so that it lets no row through."
    elif any(expression.text in ("false", "(1 = 0)") for _word, expression in _expressions(policy)):
        told = [word for word, expression in _expressions(policy) if expression.text in ("false", "(1 = 0)")]
        why = f"{' and '.join(told)} is always false, so that it lets no row through."
    else:
        return
    advice = (
        f"-- If nothing is to be allowed, no policy is needed: DROP POLICY {policy.quoted} ON {relation.qualified};"
    )
    yield _finding("always_false", relation, policy, why, advice)


# -- true for too many -------------------------------------------------------------------------------------------------


def _too_many(relation: Relation, policy: Policy) -> t.Iterator[Finding]:
    for word, expression in _expressions(policy):
        text = expression.text
        if not _NULL_TEST.search(text) and "auth.role()" not in text and "current_setting(" not in text:
            continue
        if _IDENTITY.search(text) is None:
            continue
        parts = list(disjuncts(tree.parse(text).val))
        absent = next((part for part in parts if _identity_absent(part)), None)
        if absent is not None:
            why = (
                f"{word} is true for every row as soon as nobody is signed in: {tree.show(absent)} is one of its"
                " alternatives."
            )
            advice = "-- Leave the alternative out, or write auth.uid() IS NOT NULL AND ..."
            yield _finding("null_identity", relation, policy, why, advice)
            return
        anyone = next((part for part in parts if _identity_present(part)), None)
        if anyone is not None:
            writes = policy.command != "r"
            why = (
                f"{word} is true for every row and everybody who is signed in ({tree.show(anyone)}):"
                f" {'each may write' if writes else 'each sees'} the rows of all others."
            )
            advice = "-- Compare a column with auth.uid(). If all are to see all, write TO authenticated USING (true)."
            yield _finding("any_user", relation, policy, why, advice, "warning" if writes else "info")
            return


def disjuncts(node: Node) -> t.Iterator[Node]:
    """The parts of a condition that are joined by OR: one that is true makes the whole true."""
    if tree.kind(node) == "BoolExpr" and node.boolop.name == "OR_EXPR":
        for part in node.args:
            yield from disjuncts(part)
    else:
        yield node


def _null_test(node: Node) -> t.Optional[t.Tuple[Node, bool]]:
    """(what is tested, whether the test is true for NULL); NOT turns it round."""
    node = tree.uncast(node)
    if tree.kind(node) == "NullTest":
        return node.arg, node.nulltesttype.name == "IS_NULL"
    if tree.kind(node) == "BoolExpr" and node.boolop.name == "NOT_EXPR":
        inner = _null_test(node.args[0])
        return None if inner is None else (inner[0], not inner[1])
    return None


def _identity_of(node: Node) -> bool:
    """Whether a value is the caller's identity: a call, wrapped or cast, or a member of the token."""
    node = tree.uncast(node)
    inner = wrap.fromless(node)
    if inner is not None:
        return _identity_of(inner)
    if tree.kind(node) == "A_Expr" and (node.kind.name == "AEXPR_NULLIF" or node.name[-1].sval in ("->", "->>")):
        return node.lexpr is not None and _identity_of(node.lexpr)
    if not wrap.is_identity(node):
        return False
    # Without missing_ok a setting that is not there is an error, never NULL.
    return tree.function_name(node)[-1] != "current_setting" or len(node.args) == 2


def _identity_absent(part: Node) -> bool:
    test = _null_test(part)
    return test is not None and test[1] and _identity_of(test[0])


def _identity_present(part: Node) -> bool:
    test = _null_test(part)
    if test is not None:
        return not test[1] and _identity_of(test[0])
    sides = tree.equality(part)
    if sides is None:
        return False
    for call, value in (sides, sides[::-1]):
        inner = tree.uncast(call)
        inner = tree.uncast(wrap.fromless(inner) or inner)
        constant = tree.uncast(value)
        if (
            tree.kind(inner) == "FuncCall"
            and tree.function_name(inner) == ("auth", "role")
            and tree.kind(constant) == "A_Const"
            and getattr(constant.val, "sval", "") == "authenticated"
        ):
            return True
    return False


def always(expression: t.Optional[Expression]) -> bool:
    """Whether an expression is true for every row: ``true``, ``1 = 1``, or either as an alternative of an OR."""
    if expression is None:
        return False
    if expression.text in ("true", "(1 = 1)"):
        return True
    if " OR " not in expression.text or not _TRUE_OR_FALSE.search(expression.text):
        return False
    return any(tree.show(part) in ("TRUE", "1 = 1") for part in disjuncts(tree.parse(expression.text).val))


def _anonymous_write(relation: Relation, policy: Policy) -> t.Iterator[Finding]:
    """A policy for writing that names ``anon`` and asks for no identity. PUBLIC is judged by the condition alone."""
    expression = policy.check or policy.using
    if policy.command == "r" or "anon" not in policy.role_names or expression is None:
        return
    if always(expression) or expression.text in ("false", "(1 = 0)") or _IDENTITY.search(expression.text):
        return
    verb = "write" if policy.command == "*" else COMMANDS[policy.command]
    why = f"Whoever has the project's public key may {verb} without signing in, where {expression.text}."
    advice = f"-- If that is not meant: ALTER POLICY {policy.quoted} ON {relation.qualified} TO authenticated;"
    yield _finding("anonymous_write", relation, policy, why, advice)


def _given_away(read: Catalog, relation: Relation, policy: Policy) -> t.Iterator[Finding]:
    """USING binds rows to the caller and WITH CHECK, which stands in its place for new rows, binds them to nobody."""
    using, check = policy.using, policy.check
    if using is None or check is None or policy.command not in ("*", "w") or using.text == check.text or always(check):
        return
    if check.has_sublink or not read.functions.keys().isdisjoint(check.functions) or _IDENTITY.search(check.text):
        return
    columns = {place["left"] or place["right"] for place in _USING_COLUMN.finditer(using.text)}
    if not columns or any(re.search(rf"(?<![\w.]){column}(?!\w)", check.text) for column in columns):
        return
    told = ", ".join(sorted(columns))
    what = "INSERT a row in another's name" if policy.command == "*" else "give a row to somebody else"
    why = (
        f"USING binds {told} to the caller, WITH CHECK does not, and stands in its place for new rows: the caller may"
        f" {what}."
    )
    advice = f"ALTER POLICY {policy.quoted} ON {relation.qualified} WITH CHECK (({using.text}) AND ({check.text}));"
    yield _finding("check_drops_owner", relation, policy, why, advice)


def _any_bucket(relation: Relation, policy: Policy, texts: t.Sequence[str]) -> t.Iterator[Finding]:
    if (relation.schema, relation.name) != ("storage", "objects") or not texts or texts == ["false"]:
        return
    if any("bucket_id" in text for text in texts):
        return
    why = "It asks for no bucket, so that it holds for the files of every bucket, those to come as well."
    yield _finding("any_bucket", relation, policy, why, "-- AND bucket_id = '...'")


# -- true for the wrong ones -------------------------------------------------------------------------------------------


def _words(read: Catalog, relation: Relation, policy: Policy, text: str) -> t.Iterator[Finding]:
    identity = _IDENTITY.search(text) is not None
    constant = _CONSTANT.search(text)
    if constant is not None:
        why = f"It names one person or tenant in its text ({constant[0].partition('::')[0]})."
        advice = "-- Keep such rights in a table, where they can be seen and revoked."
        yield _finding("hardcoded_identity", relation, policy, why, advice)
    if not identity:
        return
    if _PATTERN.search(text):
        yield from _pattern(relation, policy, text)
    if _EMAIL.search(text):
        why = (
            "It decides by the email address of the token: a user may change his address, and upper and lower case"
            " count."
        )
        advice = "-- Compare the user's id, which never changes: (SELECT auth.uid())"
        yield _finding("email_identity", relation, policy, why, advice)
    if "auth.role()" in text:
        names = {role.name for role in read.roles.values()}
        unknown = sorted({place["left"] or place["right"] or "" for place in _ROLE.finditer(text)} - names)
        if unknown:
            why = f"auth.role() is never {', '.join(map(repr, unknown))}: there is no such role."
            advice = f"-- Roles of a token are those of the API: {', '.join(API_ROLES)}, service_role."
            yield _finding("unknown_role_name", relation, policy, why, advice)
    settings = sorted({place["name"] for place in _SETTING.finditer(text)} - _SERVER_SETTINGS)
    if settings:
        why = (
            f"{', '.join(settings)} can be set by nobody, as a setting of one's own needs a prefix (app.user_id): the"
            " policy fails, or lets nobody through."
        )
        yield _finding("unqualified_setting", relation, policy, why, "-- current_setting('app.name', true)")


#: Settings of the server itself that a policy may read for its identity.
_SERVER_SETTINGS = frozenset(("application_name", "role", "session_authorization", "search_path", "is_superuser"))


def _pattern(relation: Relation, policy: Policy, text: str) -> t.Iterator[Finding]:
    for node in tree.of_type(tree.parse(text).val, "A_Expr"):
        operator = node.name[-1].sval
        if operator not in ("~~", "~~*", "~", "~*"):
            continue
        constant = tree.kind(tree.uncast(node.rexpr)) == "A_Const"
        if constant or not any(wrap.is_identity(below) for below in tree.walk(node)):
            continue
        why = (
            f"{tree.show(node)} takes what the caller's token or session says as a pattern, or matches it against one:"
            " with % or .* it matches everything."
        )
        yield _finding(
            "pattern_identity",
            relation,
            policy,
            why,
            "-- Compare with =; for upper and lower case: lower(a) = lower(b)",
        )
        return
