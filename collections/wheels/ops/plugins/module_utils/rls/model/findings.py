# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one shape of everything that an audit has to say."""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass, field

#: Worst first. "error": an access fails, or data is open; "warning": it will, or it is slow; "info": worth knowing.
SEVERITIES = ("error", "warning", "info")

#: Every kind of finding with its severity and what it is called for people.
KINDS: t.Dict[str, t.Tuple[str, str]] = {
    "recursion": ("error", "Infinite recursion in a policy"),
    "possible_54001": ("error", "Recursion at run time through a function"),
    "rewrite_error": ("error", "PostgreSQL refuses the access"),
    "captured_column": ("error", "A column compared with itself"),
    "inner_table_denied": ("error", "A policy reads a table that the role may not read"),
    "reads_auth_users": ("error", "A policy reads auth.users"),
    "policy_without_rls": ("error", "Policies on a table without row-level security"),
    "table_without_rls": ("error", "A table of the API without row-level security"),
    "view_bypasses_rls": ("error", "A view that reads past the policies of its tables"),
    "user_metadata": ("error", "A policy trusts what its user may write"),
    "auth_users_exposed": ("error", "A view of the API that shows auth.users"),
    "foreign_table_exposed": ("error", "A foreign table of the API"),
    "role_bypasses_rls": ("error", "A role of the API that row-level security does not bind"),
    "null_identity": ("error", "A policy that is true for whoever is not signed in"),
    "immutable_identity": ("error", "A policy calls an IMMUTABLE function that reads the session"),
    "materialized_view_exposed": ("warning", "A materialized view of the API"),
    "realtime_without_rls": ("warning", "A table that is broadcast without row-level security"),
    "sensitive_column": ("warning", "A column with secrets that a role of the API may read"),
    "leakproof_function": ("warning", "A function marked LEAKPROOF"),
    "view_calls_definer": ("warning", "A view that calls a SECURITY DEFINER function"),
    "view_as_owner": ("info", "A view that reads what its reader may not"),
    "any_user": ("warning", "A policy that everybody passes who is signed in"),
    "anonymous_write": ("warning", "A policy for writing without signing in"),
    "check_drops_owner": ("warning", "WITH CHECK forgets what USING demands"),
    "any_bucket": ("warning", "A policy on files of every bucket"),
    "pattern_identity": ("warning", "An identity matched as a pattern"),
    "email_identity": ("info", "A policy decides by an email address"),
    "hardcoded_identity": ("info", "A policy names one person in its text"),
    "unknown_role_name": ("warning", "A policy asks for a role that does not exist"),
    "unqualified_setting": ("warning", "A policy reads a setting that nobody can set"),
    "always_false": ("warning", "A policy that lets nobody through"),
    "only_restrictive": ("warning", "Restrictive policies and no permissive one"),
    "policy_for_exempt_role": ("info", "A policy for a role that no policy binds"),
    "no_select_policy": ("warning", "Policies for writing and none for reading"),
    "soft_delete_hidden": ("warning", "A soft delete that hides its own row"),
    "bucket_listing": ("warning", "A bucket whose files everybody may list"),
    "always_true": ("warning", "A policy that is always true"),
    "latent_recursion": ("warning", "Recursion as soon as an identity call is wrapped"),
    "unknown_function": ("warning", "A policy calls a function that cannot be followed"),
    "definer_exposed": ("warning", "A SECURITY DEFINER function in an exposed schema"),
    "definer_search_path": ("warning", "A SECURITY DEFINER function with a mutable search_path"),
    "function_search_path": ("warning", "A function of a policy with a mutable search_path"),
    "volatile_function": ("warning", "A policy calls a VOLATILE function"),
    "definer_not_bypassing": ("warning", "A SECURITY DEFINER function that row-level security still binds"),
    "unwrapped_auth": ("warning", "An identity call that runs for every row"),
    "nested_wraps": ("info", "Sub-selects wrapped more than once"),
    "multiple_permissive": ("warning", "Several permissive policies for one role and command"),
    "unindexed_column": ("warning", "A policy compares a column that has no index"),
    "unindexable_comparison": ("info", "A policy compares a column only after a conversion"),
    "rls_without_policy": ("info", "Row-level security without a policy"),
}


def identity_of(kind: str, name: str, details: t.Mapping[str, t.Any]) -> t.Tuple[str, ...]:
    """See ``Finding.identity``."""
    return (kind, name, *(str(step) for step in details.get("path") or ()))


class _Later:
    """A field that holds a text, or what makes it when it is first read: thousands of statements that nobody prints
    would take longer to write than everything else takes to find.
    """

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: t.Optional[object], _owner: t.Optional[type] = None) -> str:
        if instance is None:
            return ""  # the field's default
        value = instance.__dict__[self._name]
        if callable(value):
            value = instance.__dict__[self._name] = value()
        return str(value)

    def __set__(self, instance: object, value: t.Union[str, t.Callable[[], str]]) -> None:
        instance.__dict__[self._name] = value


@dataclass(frozen=True)
class Finding:
    """``object`` is the table, policy or function; ``why`` says why it matters; ``statement`` is the SQL that would fix
    it, or empty where only a person can decide. ``details`` holds what a program needs (table, policy, role, command,
    path).
    """

    kind: str
    object: str
    why: str
    statement: _Later = _Later()
    severity: str = ""
    details: t.Dict[str, t.Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.severity:
            object.__setattr__(self, "severity", KINDS[self.kind][0])

    @property
    def title(self) -> str:
        return KINDS[self.kind][1]

    @property
    def identity(self) -> t.Tuple[str, ...]:
        """What makes it the same finding in two audits: kind, object, and the path of a recursion."""
        return identity_of(self.kind, self.object, self.details)

    def order(self) -> t.Tuple[int, str, str]:
        return SEVERITIES.index(self.severity), self.kind, self.object

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {**asdict(self), "title": self.title}
