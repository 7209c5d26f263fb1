#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: deployment
short_description: Begin and end a deployment, under a lock and with a journal
version_added: 1.0.0
description:
  - Keeps two deployments from changing the same host at once.
  - Finds a deployment that was interrupted, by a crash of the controller or of the host, and goes on under its id.
  - Bookkeeping in O(state_dir) alone; the backend is not touched, and the task never counts as a change.
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
options:
  state:
    description:
      - V(begun) takes the lock and opens the journal, or goes on with the one that is open.
      - V(finished) and V(rolled_back) close the journal and give the lock back.
      - V(queried) says what is open, what is in force, and which of its files are no longer as they were installed.
    type: str
    choices: [begun, finished, rolled_back, queried]
    required: true
  deployment_id:
    description: The id of the deployment; for O(state=begun) the one to use where none is open.
    type: str
    default: ""
  holder:
    description: The run that deploys, as P(wheels.ops.controller_process#lookup) names it.
    type: str
    default: ""
  dead_holders:
    description: Runs that are known to have ended; a lock of theirs is taken over.
    type: list
    elements: str
    default: []
  failing:
    description: The checks that fail before the deployment, kept in the journal. Who takes it back can tell what was broken all along.
    type: list
    elements: str
    default: []
  force:
    description: Take the lock over whoever holds it.
    type: bool
    default: false
  state_dir:
    description: Where the lock and the journal lie.
    type: path
    default: /var/lib/wheels-ops
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Begin
  wheels.ops.deployment:
    state: begun
    deployment_id: "20250730T0211"
    holder: "{{ lookup('wheels.ops.controller_process') }}"
"""

RETURN = r"""
deployment_id:
  description: The id under which this run goes on.
  returned: success
  type: str
resumed:
  description: Whether that deployment had been begun by an earlier run.
  returned: O(state=begun)
  type: bool
holder:
  description: Who held the lock before, empty for nobody.
  returned: O(state=begun) or O(state=queried)
  type: str
failing_before:
  description: The checks that failed before that deployment.
  returned: O(state=finished) or O(state=rolled_back)
  type: list
  elements: str
in_force:
  description: The deployments whose files are installed now, newest first.
  returned: O(state=queried)
  type: list
  elements: str
drifted:
  description: Files that are no longer as those deployments left them; what is around our block in a file of the backend does not count.
  returned: O(state=queried)
  type: list
  elements: str
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.remedies import deployment
from ansible_collections.wheels.ops.plugins.module_utils.results import Result


def call(module: AnsibleModule) -> Result:
    given = module.params
    if given["state"] == "queried":
        return deployment.query(given["state_dir"])
    if given["state"] == "begun":
        return deployment.begin(
            given["state_dir"],
            given["deployment_id"],
            holder=given["holder"],
            dead_holders=given["dead_holders"],
            failing=given["failing"],
            force=given["force"],
            check_mode=module.check_mode,
        )
    return deployment.end(given["state_dir"], given["deployment_id"], holder=given["holder"], state=given["state"], check_mode=module.check_mode)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["begun", "finished", "rolled_back", "queried"], "required": True},
            "deployment_id": {"type": "str", "default": ""},
            "holder": {"type": "str", "default": ""},
            "dead_holders": {"type": "list", "elements": "str", "default": []},
            "failing": {"type": "list", "elements": "str", "default": []},
            "force": {"type": "bool", "default": False},
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
        },
        required_if=[("state", state, ("deployment_id", "holder")) for state in ("begun", "finished", "rolled_back")],
        supports_check_mode=True,
    )
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
