#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: rls_info
short_description: Find row-level-security policies that fail, leak or are slow
version_added: 1.0.0
description:
  - Asks PostgreSQL about every class of roles, every table with row-level security and each way of using it (nine
    variants of SELECT, INSERT,
    UPDATE and DELETE), and every view, in one round trip. The server's own answer is compared with a simulation of its
    query rewriter,
    which tells how each recursion comes about. Where the two disagree the module fails.
  - Reports C(infinite recursion detected in policy) (SQLSTATE 42P17), recursion through functions (54001), and what
    else is wrong with policies.
  - Runs in a READ ONLY transaction and creates nothing. It takes no lock that blocks writers.
extends_documentation_fragment:
  - wheels.ops.attributes.info
  - wheels.ops.postgres
options:
  schemas:
    description: Schemas to look at. By default all but the system's.
    type: list
    elements: str
  roles:
    description:
      - Roles to look through. By default one of each class of roles that hold the same policies' roles.
      - Superusers and roles with BYPASSRLS are left out, as no policy applies to them.
    type: list
    elements: str
  lock_timeout:
    description: Seconds to wait for a lock that another session holds.
    type: float
    default: 5
  statement_timeout:
    description: Seconds that one statement may take.
    type: float
    default: 60
requirements:
  - psycopg2 >= 2.9
  - pglast >= 6
author:
  - The wheels.ops maintainers (@wheels-ops)
seealso:
  - module: wheels.ops.rls_repair
"""

EXAMPLES = r"""
- name: Look for recursive policies
  wheels.ops.rls_info:
    dsn: "{{ database_dsn }}"
  register: rls

- name: Stop a deployment that would break the API
  ansible.builtin.assert:
    that: rls.failing | length == 0
    fail_msg: "{{ rls.failing | map(attribute='path') | unique | join('\n') }}"
"""

RETURN = r"""
changed:
  description: Always V(false).
  returned: always
  type: bool
msg:
  description: What was found, in one sentence.
  returned: always
  type: str
diff:
  description: Always empty.
  returned: success
  type: list
  elements: dict
before:
  description: The audit in numbers.
  returned: success
  type: dict
  sample: {checked: 90, failing: 25, tables: 2, policies: 4, findings: {recursion: 2}}
after:
  description: The same as RV(before), as nothing is changed.
  returned: success
  type: dict
actions:
  description: Always empty.
  returned: success
  type: list
  elements: dict
checked:
  description: How many accesses the server was asked about.
  returned: success
  type: int
tables:
  description: How many tables have row-level security.
  returned: success
  type: int
policies:
  description: How many policies they have.
  returned: success
  type: int
failing:
  description: The accesses that PostgreSQL refuses.
  returned: success
  type: list
  elements: dict
  contains:
    role:
      description: The role that was asked for.
      type: str
    roles:
      description: All roles for which it is the same.
      type: list
      elements: str
    relation:
      description: Table or view, qualified and quoted.
      type: str
    command:
      description: One of V(select), V(select_for_update), V(insert), V(insert_returning), V(upsert), V(update_blind),
        V(update), V(delete_blind), V(delete).
      type: str
    sqlstate:
      description: The error code.
      type: str
    message:
      description: PostgreSQL's message.
      type: str
    witness:
      description: How the recursion comes about, one step an element.
      type: list
      elements: str
    path:
      description: The same in one line.
      type: str
findings:
  description: Everything worth a person's attention, most severe first.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: What it is, for programs.
      type: str
    title:
      description: What it is, for people.
      type: str
    severity:
      description: V(error), V(warning) or V(info).
      type: str
    object:
      description: The table, policy or function.
      type: str
    why:
      description: Why it matters.
      type: str
    statement:
      description: The statement that would fix it, where one can be given.
      type: str
    details:
      description: Table, policy, roles and commands.
      type: dict
unasked:
  description: Roles that the session may not become; for them the simulation alone speaks.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.rls import module_api


def main() -> None:
    module = AnsibleModule(argument_spec=module_api.arguments(), supports_check_mode=True)
    run(module, lambda: module_api.info(module.params))


if __name__ == "__main__":
    main()
