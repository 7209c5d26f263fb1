#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: sql_script
short_description: Apply SQL scripts once, each in one transaction
version_added: 1.0.0
description:
  - Applies scripts in order. Each runs in one transaction, together with its line in a ledger inside the database,
    under an advisory lock,
    so that it is there as a whole or not at all, whoever else runs it at the same time and however the run ends.
  - A script that the ledger knows as applied with the same checksum is not run again. A changed one is.
  - Before anything runs, each script is read with PostgreSQL's own parser. Transaction control, C(VACUUM),
    C(CONCURRENTLY), C(COPY) from standard
    input and commands of psql are refused with their line.
  - In check mode the scripts run in one transaction that is rolled back, and the result says what would change in the
    catalog.
    Locks are taken for as long as that lasts; O(rehearse=false) is a look without.
extends_documentation_fragment:
  - wheels.ops.attributes
  - wheels.ops.postgres
attributes:
  check_mode:
    support: full
    description: Runs the scripts and rolls them back; the result has the same shape as that of a real run.
  diff_mode:
    support: full
    description: Shows what becomes different in the catalog (tables, columns, policies, functions, indexes, triggers,
      grants).
  idempotent:
    support: full
    description: A second run finds every script in the ledger. A script with C(always_run) is run each time, and is a
      change when something differs.
options:
  scripts:
    description: The scripts, in the order in which they are applied. With O(state=undone) they are worked on in
      reverse.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: File on the managed host, in UTF-8. Either this or O(scripts[].content) is given.
        type: path
      content:
        description: The script itself, for a script that lies on the controller and is read with a lookup.
        type: str
      name:
        description: Name in the ledger. By default the file's name without its directory. Needed with
          O(scripts[].content).
        type: str
      undo_path:
        description: Undo script. By default C(X.undo.sql) beside C(X.sql), when it exists. Its text is kept in the
          ledger.
        type: path
      undo_content:
        description: The text of the undo script, beside O(scripts[].content).
        type: str
      always_run:
        description:
          - Run it even when the ledger knows it, to find what someone changed since.
          - It is then reported as changed when the catalog differs afterwards or one of its statements wrote rows. Rows
            that a C(DO) block wrote do not count.
        type: bool
        default: false
  state:
    description:
      - V(applied) applies what is not applied.
      - V(undone) undoes what is applied, with the undo script that was current when it was applied.
    type: str
    choices: [applied, undone]
    default: applied
  variables:
    description:
      - Values for the scripts, which read them with C(current_setting('wheels_ops.NAME', true)).
      - They are bound by the driver; the text of a script is never edited.
    type: dict
    default: {}
  rehearse:
    description:
      - Whether check mode runs the scripts and rolls them back.
      - With V(false) it reads and judges them, connects, and takes from the ledger which would be run. No lock is
        taken, C(catalog) stays empty, and
        a script with C(always_run) counts as a change. It is for a look beforehand whether they could run at all.
    type: bool
    default: true
  directory:
    description:
      - A directory on the managed host that gets a copy of every script and undo script, for a person who needs them
        by hand. The copies are written before anything runs; a copy that differed is a change.
      - Without it no file is written.
    type: path
    version_added: 1.1.0
  lock_timeout:
    description: Seconds that one statement may wait for a lock. After that the transaction is rolled back and tried
      again.
    type: float
    default: 5
  statement_timeout:
    description: Seconds that one statement may take. V(0) is no limit.
    type: float
    default: 300
  retries:
    description: How often a transaction is repeated that lost a lock to someone else, was chosen in a deadlock, or
      could not be serialized.
    type: int
    default: 5
  retry_delay:
    description: Seconds before the second attempt. Each further wait is twice as long, at most 30 seconds, less a
      random part.
    type: float
    default: 0.5
  run_id:
    description: Identifier of this run, written into the ledger.
    type: str
    default: ""
requirements:
  - psycopg2 >= 2.9
  - pglast >= 6
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Repair the database
  wheels.ops.sql_script:
    dsn: "{{ database_dsn }}"
    scripts:
      - path: /var/lib/wheels-ops/sql/critical_database_fixes.sql
    run_id: "{{ wheels_ops_run_id }}"

- name: Take it back
  wheels.ops.sql_script:
    dsn: "{{ database_dsn }}"
    scripts:
      - path: /var/lib/wheels-ops/sql/critical_database_fixes.sql
    state: undone

- name: Apply a script of the controller
  wheels.ops.sql_script:
    dsn: "{{ database_dsn }}"
    scripts:
      - name: indexes.sql
        content: "{{ lookup('ansible.builtin.file', 'indexes.sql', rstrip=false) }}"
"""

RETURN = r"""
changed:
  description: Whether a script was, or in check mode would be, applied or undone.
  returned: always
  type: bool
msg:
  description: What was done, in one sentence.
  returned: always
  type: str
before:
  description: What the ledger said of each script, by name.
  returned: success
  type: dict
  sample: {critical_database_fixes.sql: {state: absent, checksum: "", applied_at: "", run_id: ""}}
after:
  description: What it says now, or would say.
  returned: success
  type: dict
actions:
  description: One per script, in the order worked on.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: V(apply), V(undo), or V(keep) when there was nothing to do.
      type: str
    target:
      description: Name of the script.
      type: str
    changed:
      description: Whether it was, or would be, run.
      type: bool
    checksum:
      description: SHA-256 of the script.
      type: str
    statements:
      description: How many statements it has.
      type: int
    rows:
      description: How many rows its statements wrote.
      type: int
    duration_ms:
      description: How long its statements took, in milliseconds.
      type: float
    attempts:
      description: How many attempts it took to get the locks.
      type: int
    catalog:
      description: What became different, with kind, name, change (created, changed, dropped), before and after. The
        ledger is left out.
      type: list
      elements: dict
copies:
  description: Files that were, or would be, written below O(directory).
  returned: where one differs
  type: list
  elements: str
script:
  description: The script that failed.
  returned: when a script fails
  type: str
line:
  description: The line in it, counted from 1.
  returned: when a script fails
  type: int
statement:
  description: The statement, shortened.
  returned: when a script fails
  type: str
sqlstate:
  description: The server's error code.
  returned: when the server reports an error
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result
from ansible_collections.wheels.ops.plugins.module_utils.database import connect, scripts
from ansible_collections.wheels.ops.plugins.module_utils.remedies import script_copies


def call(module: AnsibleModule) -> Result:
    directory, check_mode = module.params["directory"], module.check_mode
    copies = (
        script_copies.write(directory, scripts.from_entries(module.params["scripts"]), check_mode=check_mode)
        if directory
        else []
    )
    result = scripts.from_params(module.params, check_mode=check_mode)
    if copies:
        result.changed = True
        result.extra["copies"] = copies
        result.msg += f" {'Would copy' if check_mode else 'Copied'} {len(copies)} files to {directory}."
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **connect.argument_spec(),
            "scripts": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path"},
                    "content": {"type": "str"},
                    "name": {"type": "str"},
                    "undo_path": {"type": "path"},
                    "undo_content": {"type": "str"},
                    "always_run": {"type": "bool", "default": False},
                },
                "required_one_of": [["path", "content"]],
                "mutually_exclusive": [["path", "content"], ["path", "undo_content"], ["content", "undo_path"]],
                "required_by": {"content": ["name"]},
            },
            "state": {"type": "str", "choices": ["applied", "undone"], "default": "applied"},
            "variables": {"type": "dict", "default": {}},
            "rehearse": {"type": "bool", "default": True},
            "directory": {"type": "path"},
            "lock_timeout": {"type": "float", "default": 5},
            "statement_timeout": {"type": "float", "default": 300},
            "retries": {"type": "int", "default": 5},
            "retry_delay": {"type": "float", "default": 0.5},
            "run_id": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
