#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: cpu_relief
short_description: Temporarily lower the priority of CPU-intensive processes
version_added: 1.0.0
description:
  - Finds what uses the CPU now, over a sample and not over a lifetime, and lets it run only when nobody else wants the
    core.
  - The processes of O(services) are never touched. A service that the manager does not know is refused.
  - Nothing is stopped or killed. What was changed is recorded on disk and restored exactly, by O(state=normal) or after
    O(revert_after).
  - The kernel compares processes within one control group. Where a hog lives in another group than the services,
    RV(actions[].effective) is false, and its unit's C(CPUWeight) is what to lower.
options:
  state:
    description: V(relieved) lowers priorities, V(normal) restores all of them.
    type: str
    choices: [relieved, normal]
    default: relieved
  demote:
    description: Regular expressions of command lines whose priority may be lowered; everything that is not protected where
      it is empty.
    type: list
    elements: str
    default: []
  protect:
    description: Regular expressions of command lines that may not, besides systemd, sshd, databases and web servers.
    type: list
    elements: str
    default: []
  method:
    description: V(idle) is the scheduler's idle class, V(nice) is nice 19.
    type: str
    choices: [idle, nice]
    default: idle
  sample_s:
    description: Seconds to measure, 0.2 to 60.
    type: float
    default: 5
  min_percent:
    description: From how many percent of one core on a process counts, 1 to 100.
    type: float
    default: 25
  revert_after:
    description: Seconds after which the next run of this module puts a process back, up to a week; 0 for never.
    type: float
    default: 3600
  state_dir:
    description: Where C(cpu_relief.json) lies. The environment variable E(WHEELS_OPS_STATE_DIR), else
      C(/var/lib/wheels-ops), where it is not given.
    type: path
requirements:
  - root, CAP_SYS_NICE, or a user whose own processes have the RLIMIT_NICE to be restored; what could not be restored is
    left alone, and
    the module fails
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes
  - wheels.ops.services
  - wheels.ops.service_manager
attributes:
  diff_mode:
    support: full
seealso:
  - module: wheels.ops.celery_throttle
"""

EXAMPLES = r"""
- name: Let whatever burns the CPU yield to the backend
  wheels.ops.cpu_relief:
    services: "{{ services_list }}"
    revert_after: 1800
  become: true

- name: Put everything back
  wheels.ops.cpu_relief:
    state: normal
  become: true
"""

RETURN = r"""
before:
  description: C(held), how many processes yielded before.
  returned: success
  type: dict
after:
  description: The same afterwards.
  returned: success
  type: dict
actions:
  description: One entry for every process. C(action) is V(yield) or V(restore).
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: The verb.
      type: str
    target:
      description: The process, in words.
      type: str
    pid:
      description: The process.
      type: int
    command:
      description: Its command line.
      type: str
    percent:
      description: Percent of one core that it used.
      type: float
    before:
      description: Its scheduling before.
      type: str
    after:
      description: Its scheduling afterwards.
      type: str
    changed:
      description: Whether it was changed.
      type: bool
    effective:
      description: Whether it shares a control group with the services.
      type: bool
top:
  description: The ten largest consumers over the sample.
  returned: success
  type: list
  elements: dict
diff:
  description: Scheduling before and after.
  returned: success
  type: list
  elements: dict
msg:
  description: One sentence for people.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result
from ansible_collections.wheels.ops.plugins.module_utils.remedies import cpu_relief
from ansible_collections.wheels.ops.plugins.module_utils.services import arguments
from ansible_collections.wheels.ops.plugins.module_utils.services.manager import from_params
from ansible_collections.wheels.ops.plugins.module_utils.services.service_processes import service_pids


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["relieved", "normal"], "default": "relieved"},
            "services": {**arguments.SERVICES, "default": []},
            **arguments.MANAGER,
            "demote": {"type": "list", "elements": "str", "default": []},
            "protect": {"type": "list", "elements": "str", "default": []},
            "method": {"type": "str", "choices": ["idle", "nice"], "default": "idle"},
            "sample_s": {"type": "float", "default": 5},
            "min_percent": {"type": "float", "default": 25},
            "revert_after": {"type": "float", "default": 3600},
            "state_dir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    p = module.params

    def call() -> Result:
        pids = service_pids(p["services"], lambda: from_params(p))
        options = cpu_relief.Options(
            state=p["state"],
            demote=tuple(p["demote"]),
            protect=tuple(p["protect"]),
            protected_pids=pids,
            method=p["method"],
            sample_s=p["sample_s"],
            min_percent=p["min_percent"],
            revert_after=p["revert_after"],
            state_dir=p["state_dir"] or "",
        )
        return cpu_relief.run(options, check_mode=module.check_mode)

    run(module, call)


if __name__ == "__main__":
    main()
