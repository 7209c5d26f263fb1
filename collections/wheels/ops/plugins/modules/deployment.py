#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: deployment
short_description: Manage the deployment lock and journal
version_added: 1.0.0
description:
  - Keeps two runs from changing the same host at once. A lock whose holder is alive is never taken over, however old it
    is.
  - Finds a deployment that was interrupted, by a crash of the controller or of the host, and goes on under its id.
  - Bookkeeping in O(state_dir) alone; the backend is not touched, and the task never counts as a change.
  - Needs nothing but Python's standard library, so it runs before the virtual environment of the other modules is
    there.
  - A run that holds the lock gives its holder and O(state_dir) to its other tasks in the environment variables
    E(WHEELS_OPS_LOCK_HOLDER) and E(WHEELS_OPS_LOCK_DIR). Each module of this collection then renews the lock while it
    works,
    and fails where the lock was lost.
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
options:
  state:
    description:
      - V(locked) takes the lock, and opens no journal. V(unlocked) releases it, where the run still holds it.
      - V(begun) takes the lock and opens the journal, or goes on with the one that is open.
      - V(finished) and V(rolled_back) close the journal. They fail where the files on the disk are not those that this
        says. A rollback that left files alone closes it as C(partly_rolled_back), which is still in force.
      - V(queried) says what is open, what is in force, and which of its files are no longer as they were installed.
    type: str
    choices: [locked, unlocked, begun, finished, rolled_back, queried]
    required: true
  kind:
    description:
      - What kind of run it is.
      - Where a deployment was interrupted, V(recover), V(maintenance) and V(monitor) are refused. V(deploy) finishes
        it, V(rollback) rolls it back.
    type: str
    choices: [deploy, recover, rollback, maintenance, monitor, prepare]
    default: deploy
  deployment_id:
    description: The id of the deployment; for O(state=begun) the one to use where none is open.
    type: str
    default: ""
  holder:
    description: The run that changes the host, as P(wheels.ops.controller_process#lookup) names it.
    type: str
    default: ""
  dead_holders:
    description: Runs that are known to have ended; a lock of theirs is taken over.
    type: list
    elements: str
    default: []
  living_holders:
    description: Runs that are known to be alive; a lock of theirs is not taken over, however old it is.
    type: list
    elements: str
    default: []
  failing:
    description: The checks that fail before the deployment, kept in the journal. Who rolls it back can tell what was
      broken all along.
    type: list
    elements: str
    default: []
  force:
    description: The id of the holder from whom to take the lock, even if it is alive. The message of a refused run
      names it.
    type: str
    default: ""
  if_free:
    description:
      - For O(state=locked), whether to leave the lock to another run that holds it, and to succeed with RV(taken) false.
        RV(holder) names that run, so that the controller can find out whether it is alive.
    type: bool
    default: false
    version_added: 1.1.0
  release:
    description: For O(state=finished) and O(state=rolled_back), whether to give the lock back as well.
    type: bool
    default: true
  interpreter:
    description:
      - For O(state=locked) and O(state=queried), the Python with which the run goes on.
      - Fails where another user than root and that of the task can write it, what it imports, or a directory above it.
        Nothing of it is run.
    type: str
    default: ""
  directories:
    description:
      - For O(state=queried), directories in which the run reads or writes with modules that follow links, each by the
        variable that names it.
      - Fails where one of them, or a directory above it, can be changed by another user than root and that of the task.
    type: dict
    default: {}
    version_added: 1.1.0
  state_dir:
    description: Where the lock and the journal lie. Refused where it, or a directory above it, can be changed by
      others.
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
  returned: O(state=begun) or O(state=queried)
  type: str
resumed:
  description: Whether that deployment had been begun by an earlier run.
  returned: O(state=begun)
  type: bool
holder:
  description: Who held the lock before, empty for nobody.
  returned: O(state=locked), O(state=unlocked), O(state=begun) or O(state=queried)
  type: str
taken:
  description: Whether this run holds the lock now; in check mode, whether it could take it.
  returned: O(state=locked)
  type: bool
unfinished:
  description: The deployment that was interrupted, empty for none.
  returned: O(state=locked) or O(state=queried)
  type: str
partly_rolled_back:
  description:
    - Deployments of which a rollback left files alone, because somebody had changed them. Each has its C(id) and C(files),
      the paths of these files with the paths of their originals.
  returned: O(state=queried)
  type: list
  elements: dict
  version_added: 1.1.0
damaged:
  description: Files of the journal that cannot be used, each with its C(path) and the C(reason).
  returned: O(state=queried)
  type: list
  elements: dict
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
  description: Files that are no longer as those deployments left them; what is around our block in a file of the
    backend does not count.
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
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result
from ansible_collections.wheels.ops.plugins.module_utils.state import deployments


def call(module: AnsibleModule) -> Result:
    params = module.params
    state, directory, run_options = (
        params["state"],
        params["state_dir"],
        {"holder": params["holder"], "check_mode": module.check_mode},
    )
    if state == "queried":
        return deployments.query(directory, interpreter=params["interpreter"], directories=params["directories"])
    if state == "unlocked":
        return deployments.let_go(directory, **run_options)
    if state in ("finished", "rolled_back"):
        return deployments.end(
            directory, params["deployment_id"], state=state, release=params["release"], **run_options
        )
    claim = {name: params[name] for name in ("kind", "dead_holders", "living_holders", "force")}
    if state == "locked":
        return deployments.hold(
            directory,
            deployment_id=params["deployment_id"],
            if_free=params["if_free"],
            interpreter=params["interpreter"],
            **claim,
            **run_options,
        )
    return deployments.begin(directory, params["deployment_id"], failing=params["failing"], **claim, **run_options)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["locked", "unlocked", "begun", "finished", "rolled_back", "queried"],
                "required": True,
            },
            "kind": {
                "type": "str",
                "choices": ["deploy", "recover", "rollback", "maintenance", "monitor", "prepare"],
                "default": "deploy",
            },
            "deployment_id": {"type": "str", "default": ""},
            "holder": {"type": "str", "default": ""},
            "dead_holders": {"type": "list", "elements": "str", "default": []},
            "living_holders": {"type": "list", "elements": "str", "default": []},
            "failing": {"type": "list", "elements": "str", "default": []},
            "force": {"type": "str", "default": ""},
            "if_free": {"type": "bool", "default": False},
            "release": {"type": "bool", "default": True},
            "interpreter": {"type": "str", "default": ""},
            "directories": {"type": "dict", "default": {}},
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
        },
        required_if=[
            *(("state", state, ("deployment_id", "holder")) for state in ("begun", "finished", "rolled_back")),
            *(("state", state, ("holder",)) for state in ("locked", "unlocked")),
        ],
        supports_check_mode=True,
    )
    # It asks for the lock itself, and has to give it back also where it was lost.
    run(module, lambda: call(module), renews_lock=False)


if __name__ == "__main__":
    main()
