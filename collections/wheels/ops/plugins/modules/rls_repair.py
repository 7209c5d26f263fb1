#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: rls_repair
short_description: Repair recursive row-level-security policies and verify that access is unchanged
version_added: 1.0.0
description:
  - Finds every access that fails with C(infinite recursion detected in policy) as M(wheels.ops.rls_info) does, chooses
    the smallest set of table
    references to replace, and replaces each by a C(STABLE SECURITY DEFINER) function in a schema of its own that the
    API does not expose.
  - An access that worked before keeps exactly its rows. Where a policy serves both accesses that work and accesses that
    fail it is split. What cannot be
    repaired safely is left as it is and listed in RV(needs_review) with the reason and what a person should do; the
    rest is repaired.
  - Everything is verified before a table is locked. PostgreSQL reads the new policies on an empty temporary table, no
    access that worked may fail or read other policies, and what a sample of users will see is compared with what they
    see now.
  - Then one short transaction locks the tables, refuses if the catalog is not the one that was verified, changes the
    policies, and asks the server again about the accesses that they apply to. Any difference rolls it back and fails
    the module.
  - The undo script is on disk before anything is applied.
extends_documentation_fragment:
  - wheels.ops.attributes
  - wheels.ops.postgres
attributes:
  check_mode:
    support: full
    description: Verifies everything; no reader and no writer waits for it.
  diff_mode:
    support: full
    description: Shows the policies before and after, and the functions.
  idempotent:
    support: full
    description: A second run finds nothing that fails and changes nothing.
options:
  state:
    description:
      - V(repaired) repairs.
      - V(undone) undoes a repair with the script in O(undo_path).
    type: str
    choices: [repaired, undone]
    default: repaired
  schemas:
    description: Schemas to look at. By default all but the system's.
    type: list
    elements: str
  roles:
    description: Roles to look through. By default one of each class of roles that hold the same policies' roles.
    type: list
    elements: str
  fix:
    description:
      - What to repair. V(recursion) are the failing accesses.
      - V(captured) repairs them as well where a policy compares a column with itself, and qualifies that column in
        every policy, where exactly one column of the tables around can have been meant. Without it RV(needs_review)
        proposes that, with the rows that each text lets through for whom.
      - V(volatile) repairs them as well where a policy calls a function that is VOLATILE, as functions are by default, and
        whose body only reads. The policy then uses a STABLE copy, or hands the function's value over as that of a STABLE
        one; the function stays as it is. A STABLE function sees the data as the statement found it, not what the
        statement has changed so far.
      - V(initplan) wraps identity calls so that they run once for a query instead of once for each row; never where
        that would cause a recursion.
      - V(indexes) builds indexes, concurrently, for the columns by which policies look rows up.
      - V(multiple_permissive) merges permissive policies of the same roles and command.
    type: list
    elements: str
    choices: [recursion, captured, volatile, initplan, indexes, multiple_permissive]
    default: [recursion]
  allow_unbounded:
    description: Allow functions that give back all rows of a table, where the policy ties the reference neither to the
      caller nor to its own row.
    type: bool
    default: false
  accept_captured_columns:
    description:
      - Repair policies that compare a column with itself (C(x.trip_id = trip_id), where C(trip_id) is taken from C(x)
        as well).
      - The recursion hides them. Without it they let through more than their author meant, so that they are left to a
        person by default.
    type: bool
    default: false
  helper_schema:
    description: Schema for the functions. It is created. It must not be one that the API exposes.
    type: str
    default: rls_ops
  owner:
    description:
      - Role to own the functions, which must have BYPASSRLS.
      - By default a superuser makes the role C(rls_definer), which cannot log in; a role with BYPASSRLS owns them
        itself; else the tables' owners do.
    type: str
  after_scripts:
    description:
      - In check mode, the SQL scripts that a real run applies before this task, as
        O(wheels.ops.sql_script#module:scripts) takes them.
        They run first and are rolled back with the rest, so that check mode reports what the real run does. Locks are
        held for as long as that lasts.
      - A real run ignores them.
    type: list
    elements: dict
    default: []
  after_variables:
    description: The values for those scripts.
    type: dict
    default: {}
  undo_dir:
    description: Directory for the undo scripts.
    type: path
    default: /var/lib/wheels-ops/undo
  undo_path:
    description: The undo script itself. With O(state=undone) the one to run.
    type: path
  force:
    description: With O(state=undone), undo the repair even where policies were changed since.
    type: bool
    default: false
  lock_timeout:
    description: Seconds in which the locks on the tables must be had, and for which they are held at most. Others wait
      for a small part of it, as a lock is waited for 25 milliseconds at a time. After that it is rolled back and tried
      again.
    type: float
    default: 5
  statement_timeout:
    description: Seconds that one statement may take before any table is locked.
    type: float
    default: 60
  run_id:
    description: Identifier of this run, kept in the undo script.
    type: str
    default: ""
requirements:
  - psycopg2 >= 2.9
  - pglast >= 6
author:
  - The wheels.ops maintainers (@wheels-ops)
seealso:
  - module: wheels.ops.rls_info
"""

EXAMPLES = r"""
- name: Repair recursive policies
  wheels.ops.rls_repair:
    dsn: "{{ database_dsn }}"
    run_id: "{{ wheels_ops_run_id }}"
  register: rls

- name: Repair, and make policies faster where that is safe
  wheels.ops.rls_repair:
    dsn: "{{ database_dsn }}"
    fix: [recursion, initplan, indexes]

- name: Take it back
  wheels.ops.rls_repair:
    dsn: "{{ database_dsn }}"
    state: undone
    undo_path: "{{ rls.undo }}"
"""

RETURN = r"""
changed:
  description: Whether policies were, or in check mode would be, changed.
  returned: always
  type: bool
msg:
  description: What was done, in one sentence.
  returned: always
  type: str
diff:
  description: Policies before and after, and the functions.
  returned: success
  type: list
  elements: dict
before:
  description: How many accesses failed.
  returned: success
  type: dict
  sample: {failing: 25}
after:
  description:
    - How many fail now, or would; how many accesses were asked for and how many results compared.
    - C(unmeasured) names what could not be compared before the change, and why.
    - C(strict_reading) says for each table whether its users see more than the strict reading of the policies (their
      least fixpoint) allows.
    - C(reworded) gives, for tables whose policies V(captured) qualified, the rows that the sampled users saw before and
      see now.
  returned: success
  type: dict
  sample: {failing: 0, checked: 90, comparisons: 24}
actions:
  description: One per policy, function and index.
  returned: success
  type: list
  elements: dict
needs_review:
  description: What was left as it is.
  returned: success
  type: list
  elements: dict
  contains:
    object:
      description: The table.
      type: str
    reason:
      description: Why it was left.
      type: str
    advice:
      description: What a person should do.
      type: str
    proposals:
      description: Policies with their captured columns qualified, and the rows that each text lets through for whom.
      type: list
      elements: dict
plan:
  description: Every statement, the undo statements, and the references that are replaced with the form that replaces
    them.
  returned: when O(state=repaired)
  type: dict
undo:
  description: Path of the undo script, empty when nothing was changed.
  returned: when O(state=repaired)
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.rls import module_api


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **module_api.arguments(),
            "state": {"type": "str", "choices": ["repaired", "undone"], "default": "repaired"},
            "fix": {
                "type": "list",
                "elements": "str",
                "choices": ["recursion", "captured", "volatile", "initplan", "indexes", "multiple_permissive"],
                "default": ["recursion"],
            },
            "allow_unbounded": {"type": "bool", "default": False},
            "accept_captured_columns": {"type": "bool", "default": False},
            "helper_schema": {"type": "str", "default": "rls_ops"},
            "owner": {"type": "str"},
            "after_scripts": {"type": "list", "elements": "dict", "default": []},
            "after_variables": {"type": "dict", "default": {}},
            "undo_dir": {"type": "path", "default": "/var/lib/wheels-ops/undo"},
            "undo_path": {"type": "path"},
            "force": {"type": "bool", "default": False},
            "run_id": {"type": "str", "default": ""},
        },
        required_if=[("state", "undone", ["undo_path"])],
        supports_check_mode=True,
    )
    run(module, lambda: module_api.repair(module.params, check_mode=module.check_mode))


if __name__ == "__main__":
    main()
