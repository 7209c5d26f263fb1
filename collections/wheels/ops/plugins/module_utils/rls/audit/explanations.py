# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What each kind of finding means and how to fix it by hand: the text of ``rls explain KIND``."""

from __future__ import annotations

import typing as t

EXPLANATIONS: t.Dict[str, str] = {
    "recursion": """
PostgreSQL refuses the access with 42P17, "infinite recursion detected in policy": to decide which rows a role may
see, the policy reads a table whose own policies read, directly or through others, the first table again. Every
access on that path fails, whatever the rows are.

By hand: let one reference on the path read its table without row-level security. Move that sub-select into a
function with SECURITY DEFINER, SET search_path = '' and an owner that row-level security does not bind, in a schema
that the API does not expose, returning only the caller's rows; call the function in the policy. ``rls repair`` does
this for the smallest number of references and verifies that no other access changes.
""",
    "possible_54001": """
The recursion goes through a function, so PostgreSQL sees it only when the function runs: 54001, "stack depth limit
exceeded". A policy calls a function that reads the policy's own table with the caller's rights.

By hand: make the function SECURITY DEFINER with SET search_path = '' and an owner with BYPASSRLS, if all its
callers may see what it returns. ``rls repair`` leaves the function alone and uses a copy in the policy.
""",
    "rewrite_error": """
PostgreSQL refuses the access while it rewrites the query, with another error than a recursion: a column, a function
or an operator that the policy or the view names is missing, for example.

By hand: run the statement as the role that is named, read the error, and define the policy or the view again.
""",
    "captured_column": """
Inside a sub-select a column name without a table belongs to the innermost table that has such a column. A policy
such as ``id = boards.id`` inside ``SELECT ... FROM boards`` compares the inner table's column with itself, which is
always true: the condition lets in more rows than its author meant, or all.

By hand: qualify the column with the policy's own table, or give the inner table an alias: ``FROM boards b WHERE
b.id = boards.id``. ``rls repair`` leaves the policy alone, as a repair would open the table. Where only one column can
have been meant it shows both texts and the rows that each lets through; ``--fix captured`` applies the qualified one,
``--accept-captured-columns`` keeps the text.
""",
    "inner_table_denied": """
The policy reads a table on which the role has no SELECT: the access fails with 42501, "permission denied", also
where the policy would let the row through.

By hand: GRANT SELECT on that table (or the columns that the policy reads) to the role, or move the sub-select into
a SECURITY DEFINER function.
""",
    "reads_auth_users": """
A policy reads auth.users, which the API's roles may not read: the access fails with 42501.

By hand: use auth.uid(), auth.jwt() or a profile table of your own instead.
""",
    "policy_without_rls": """
The table has policies, but row-level security is off: PostgreSQL ignores them, and whoever has the table's
privileges reads and writes every row.

By hand: ALTER TABLE ... ENABLE ROW LEVEL SECURITY, after checking that the policies are complete.
""",
    "table_without_rls": """
The table stands in a schema that the API exposes, a role of the API has privileges on it, and row-level security is
off: whoever has the project's public key reads, and with the privilege writes, every row.

By hand: ALTER TABLE ... ENABLE ROW LEVEL SECURITY, then create policies; or REVOKE the privileges from anon and
authenticated where only the server uses the table.
""",
    "view_bypasses_rls": """
A view runs with its owner's rights, and its owner is not bound by the policies of the tables that it reads: through
the view a role of the API sees rows that the policies would hide.

By hand: ALTER VIEW ... SET (security_invoker = true) on PostgreSQL 15 and newer; before, revoke the view from the
API's roles. A view that is public on purpose is better moved out of the exposed schema.
""",
    "user_metadata": """
The policy reads user_metadata from the token, or raw_user_meta_data. Every user can change his own
(auth.updateUser), and so claim any role or tenant that the policy reads there.

By hand: read ``auth.jwt() -> 'app_metadata'``, which only the server writes, or a table.
""",
    "no_select_policy": """
The role has policies for writing and none for SELECT. A plain INSERT works; INSERT ... RETURNING, which client
libraries send when they return the row, fails with 42501; UPDATE and DELETE with a WHERE find no row and report
success.

By hand: create a policy for SELECT that shows a user what he may write.
""",
    "soft_delete_hidden": """
All SELECT policies of the role demand that a row is not marked as deleted. PostgreSQL checks the new row of an
UPDATE that has a WHERE or RETURNING against them as well: setting deleted_at makes the row invisible, so that the
UPDATE fails with 42501, "new row violates row-level security policy".

By hand: mark rows in a SECURITY DEFINER function, or let the row's owner see it when it is marked, and filter in
the query.
""",
    "bucket_listing": """
The policy on storage.objects asks for nothing but the bucket, so that its roles may list all its files, with their
names. A public bucket serves its files by their address without any policy.

By hand: drop the policy, or add a condition on the owner or the folder.
""",
    "always_true": """
The policy's condition is true for every row, so that it protects nothing for its roles and commands.

By hand: drop it if it was a leftover, or restrict it. For data that is public on purpose, say so in a COMMENT ON
POLICY.
""",
    "latent_recursion": """
The access works today only because an identity call such as auth.uid() stands in the policy as it is. Wrapped into
a sub-select, ``(select auth.uid())``, as the usual advice for speed has it, PostgreSQL would follow the policy's
other references and find a recursion.

By hand: repair the recursion before wrapping the call, or let ``rls repair --fix recursion,initplan`` do both.
""",
    "unknown_function": """
The policy calls a function whose body cannot be followed (another language, dynamic SQL): whether it reads a table
that leads back to the policy is not known.

By hand: read the function. If it reads no table with policies, nothing is to be done.
""",
    "definer_exposed": """
A function with SECURITY DEFINER stands in a schema that the API exposes: anybody may call it as an RPC, with its
owner's rights and arguments of his own choice.

By hand: move it into a schema that is not exposed, or REVOKE EXECUTE from PUBLIC, anon and authenticated.
""",
    "definer_search_path": """
A function with SECURITY DEFINER has no search_path of its own: whoever may create objects in a schema on the
caller's search_path can make it read his objects with the owner's rights.

By hand: ALTER FUNCTION ... SET search_path = '', and qualify every name in its body.
""",
    "definer_not_bypassing": """
A function with SECURITY DEFINER is meant to read a table without its policies, but its owner is bound by them
(FORCE ROW LEVEL SECURITY, or an owner that is neither the table's owner nor has BYPASSRLS): the recursion that it
should end goes on.

By hand: ALTER FUNCTION ... OWNER TO a role with BYPASSRLS.
""",
    "unwrapped_auth": """
The policy calls auth.uid(), auth.jwt() or current_setting() for every row. In a sub-select, ``(select
auth.uid())``, it is called once for the query.

By hand: wrap it, unless ``latent_recursion`` is reported as well. ``rls repair --fix initplan`` does it.
""",
    "nested_wraps": """
An identity call is wrapped into sub-selects more than once. It works, and says nothing more than a single wrap.

By hand: write ``(select auth.uid())``.
""",
    "multiple_permissive": """
Several permissive policies apply to one role and command. PostgreSQL evaluates all of them for every row and joins
them with OR.

By hand: merge them into one policy with OR. ``rls repair --fix multiple_permissive`` does it.
""",
    "unindexed_column": """
The policy looks rows up by a column that has no index: every access reads the whole table.

By hand: CREATE INDEX CONCURRENTLY on that column. ``rls repair --fix indexes`` does it.
""",
    "rls_without_policy": """
Row-level security is on and there is no policy: nobody but the owner and roles with BYPASSRLS sees a row. That is
right for tables that only the server reads.

By hand: nothing, if that is meant; otherwise create policies.
""",
    "auth_users_exposed": """
A view or materialized view in a schema of the API reads auth.users with its owner's rights: a role of the API reads
the addresses, and whatever else it selects, of all users.

By hand: revoke the view from anon and authenticated, or keep what may be public in a profile table of your own with
policies.
""",
    "materialized_view_exposed": """
PostgreSQL has no row-level security for materialized views: whoever has SELECT sees every row, as the role saw it
that refreshed the view, past the policies of the tables.

By hand: REVOKE SELECT from anon and authenticated, or move it into a schema that the API does not expose.
""",
    "foreign_table_exposed": """
PostgreSQL has no row-level security for foreign tables: whoever has the privilege reads, or writes, everything that
the user mapping may.

By hand: REVOKE the privileges from anon and authenticated, or move it into a schema that is not exposed.
""",
    "role_bypasses_rls": """
A role of the API is a superuser, has BYPASSRLS, owns tables with policies, or may become a role that does: no policy
stands between its requests and the rows.

By hand: ALTER ROLE ... NOBYPASSRLS, REVOKE the membership, or ALTER TABLE ... FORCE ROW LEVEL SECURITY for the owner.
""",
    "null_identity": """
One alternative of the condition asks whether the identity is absent, such as ``auth.uid() IS NULL OR ...``. Without a
token that is true, for every row. Nearly always IS NOT NULL with AND was meant.

By hand: leave the alternative out; a comparison with auth.uid() is not true without a token anyway.
""",
    "any_user": """
The condition asks only whether somebody is signed in (``auth.uid() IS NOT NULL``, ``auth.role() = 'authenticated'``)
and names no column: all accounts reach the rows of all others, and anybody may make an account.

By hand: compare a column with auth.uid(). If all are to see all rows, ``TO authenticated USING (true)`` says so.
""",
    "immutable_identity": """
The policy calls a function that is declared IMMUTABLE and reads the session (a setting, auth.uid()). PostgreSQL may
compute it once, when a plan is made, and use the result for the next caller.

By hand: ALTER FUNCTION ... STABLE.
""",
    "realtime_without_rls": """
The table is in the publication that Supabase's Realtime broadcasts, and row-level security is off: its changes go to
every subscriber.

By hand: ENABLE ROW LEVEL SECURITY with policies, or ALTER PUBLICATION supabase_realtime DROP TABLE.
""",
    "sensitive_column": """
A column whose name says that it holds a secret (a password, a token, a card number) may be read by a role of the API,
through a grant on that column or on a table without row-level security.

By hand: REVOKE SELECT on the column, or move it into a table that only the server reads.
""",
    "leakproof_function": """
PostgreSQL runs functions marked LEAKPROOF before the conditions of policies, on rows that the caller may not see. One
that raises an error or takes longer for some values tells what they hold.

By hand: ALTER FUNCTION ... NOT LEAKPROOF, unless it tells nothing about its arguments in any way.
""",
    "view_calls_definer": """
A role of the API may read the view, and the view calls a function with SECURITY DEFINER: the function returns rows
with its owner's rights, whoever asks, even to those who may not call it themselves.

By hand: let the function return the caller's rows only, or revoke the view.
""",
    "view_as_owner": """
The view runs with its owner's rights and reads a table on which the role of the API has no SELECT. That is the usual
way to show a part of a table; the part should be what is meant.

By hand: read the view's query. If its rows should depend on the caller, set security_invoker and write policies.
""",
    "anonymous_write": """
The policy names anon, is for writing, and asks for no identity: whoever has the project's public key, which every
visitor has, may write.

By hand: ALTER POLICY ... TO authenticated, and REVOKE the privilege from anon, unless visitors are meant to write.
""",
    "check_drops_owner": """
USING compares a column with the caller, WITH CHECK does not, and an explicit WITH CHECK stands in the place of USING
for new rows. The caller may write rows in the name of others.

By hand: repeat the comparison in WITH CHECK, or leave WITH CHECK out where it should be the same as USING.
""",
    "any_bucket": """
The policy on storage.objects does not ask for the bucket: it holds for the files of all buckets, also for buckets
that are made later.

By hand: add ``bucket_id = '...'``.
""",
    "pattern_identity": """
The policy uses LIKE, ILIKE or a regular expression with the caller's identity and something that is no constant. What
holds a wildcard matches more than itself.

By hand: compare with ``=``; for upper and lower case, ``lower(a) = lower(b)``.
""",
    "email_identity": """
The policy decides by an email address. Addresses change and are given to others; ids do not.

By hand: store the user's id and compare it with (SELECT auth.uid()).
""",
    "hardcoded_identity": """
The policy names one account, tenant or address in its text. It stays when the person leaves.

By hand: keep such rights in a table that the policy reads.
""",
    "unknown_role_name": """
The policy compares auth.role() with a name that no role of the server has, so that the comparison is never true. Roles
of an application are not those of the token.

By hand: use anon, authenticated or service_role; read an application's roles from app_metadata or a table.
""",
    "unqualified_setting": """
The policy reads a setting without a prefix. PostgreSQL lets nobody set one that it does not know unless its name has a
dot, so that current_setting() fails, or gives NULL.

By hand: use a name with a dot, ``current_setting('app.user_id', true)``, in the policy and where it is set.
""",
    "always_false": """
A permissive policy without the expression that its command needs, or with one that is always false, lets no row
through. Other policies are not narrowed by it.

By hand: drop it, or write the condition that was meant. To narrow other policies make it AS RESTRICTIVE.
""",
    "only_restrictive": """
Restrictive policies narrow what permissive ones let through. Without a permissive one no row is visible to anybody
whom row-level security binds.

By hand: create a permissive policy, or drop AS RESTRICTIVE from one.
""",
    "policy_for_exempt_role": """
The policy's roles are superusers or have BYPASSRLS (Supabase's service_role): no policy binds them, and none is
needed to let them in.

By hand: drop it, or name the role that was meant.
""",
    "function_search_path": """
The policy calls a function that runs with the caller's rights and looks names up in the caller's search_path. Who may
set that, and create a table (a temporary one suffices), decides what the policy reads.

By hand: qualify the names in its body and ALTER FUNCTION ... SET search_path = ''.
""",
    "volatile_function": """
The policy calls a VOLATILE function: it runs for every row, no index can be used with its result, and it sees changes
of the very statement that it guards.

By hand: declare it STABLE if it only reads.
""",
    "unindexable_comparison": """
The policy converts a column before it compares it, ``owner::text = ...`` or ``lower(email) = ...``. An index on the
column does not help then.

By hand: convert the other side, or create an index on the expression.
""",
}
