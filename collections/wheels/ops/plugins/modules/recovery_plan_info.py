#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: recovery_plan_info
short_description: Plan the remedies for the failing checks of a host
version_added: 1.1.0
description:
  - Takes the checks of M(wheels.ops.health_info) and gives the remedies in the order in which they run, each at most
    once.
  - A remedy that is not permitted, that has nothing to work with, that would make it worse or that has to wait is
    refused, with the reason.
  - The playbook C(recover) carries the steps out. The program C(automated_recovery.py) uses the same plan.
  - Reads the history of recoveries and the restarts of services in O(state_dir). It changes nothing.
  - A check that is V(unknown) or V(skipped) never leads to a remedy.
extends_documentation_fragment:
  - wheels.ops.attributes.info
  - wheels.ops.services
options:
  checks:
    description: The RV(wheels.ops.health_info#module:checks) of a health run.
    type: list
    elements: dict
    required: true
  confirmation:
    description:
      - The checks of a second health run of RV(to_confirm), at least O(confirm_after) seconds later.
      - What fails in one of both only is not remedied.
      - Without them every remedy waits for a second run, unless O(confirm_after=0).
    type: list
    elements: dict
  confirm_after:
    description: Seconds between both health runs, 0 to 3600. With 0 the first one is believed.
    type: float
    default: 5
  unavailable:
    description: Remedies for which this host has nothing to work with, such as V(log_rotation) without log directories.
    type: list
    elements: str
    choices: &remedies
      - log_rotation
      - disk_cleanup
      - cpu_relief
      - cpu_relief_end
      - service_restart
      - database_repair
      - cache_clear
      - background_throttle
      - speech_engine
      - memory_cleanup
      - deploy
    default: []
  forbidden:
    description: Remedies that are switched off.
    type: list
    elements: str
    choices: *remedies
    default: []
  deploys:
    description:
      - Whether a deployment may be begun where only that helps.
      - Speech engines that may not be installed, and a cache that cannot be cleared for want of a token, are left to it.
    type: bool
    default: false
    version_added: 1.1.0
  token_file:
    description: The file with the ops token. Without it V(cache_clear) is unavailable.
    type: path
    default: /etc/wheels-ops/ops-token
  cooldown:
    description:
      - Seconds after a try in which a remedy is not tried again, 0 to 604800.
      - They double with every further try that did not help.
    type: float
    default: 600
  max_cooldown:
    description: The longest cool-down, 0 to 604800 seconds.
    type: float
    default: 14400
  ignore_cooldown:
    description: Try again at once, also what did not help O(max_failures) times. The budget still applies.
    type: bool
    default: false
  budget:
    description: Tries of one remedy in an hour, 0 to 1000; 0 for any number.
    type: int
    default: 6
  max_restarts:
    description: Restarts of one service in an hour, 0 to 1000; 0 for any number.
    type: int
    default: 3
  max_failures:
    description:
      - A remedy that did not help as often is not tried again before the problem has ended, 0 to 1000; 0 for any
        number.
    type: int
    default: 2
  policy:
    description:
      - What is different from the other options, as data.
      - Its keys are those of the other options that are numbers; C(remedies), by check the list of the remedies that it
        may ask for; C(ask_person), the remedies that wait for a person; and C(limits), by remedy its own C(cooldown),
        C(max_cooldown) and C(budget).
    type: dict
    default: {}
    version_added: 1.1.0
  state_dir:
    description: Where C(history.jsonl) and C(restarts.jsonl) lie.
    type: path
    default: /var/lib/wheels-ops
seealso:
  - module: wheels.ops.health_info
  - module: wheels.ops.recovery_history_info
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Run all health checks
  wheels.ops.health_info:
    redis_url: redis://127.0.0.1:6379/0
  register: health

- name: Plan the remedies, believing the first run
  wheels.ops.recovery_plan_info:
    checks: "{{ health.checks }}"
    confirm_after: 0
    forbidden: [database_repair]
  register: recovery

- name: Show the plan
  ansible.builtin.debug:
    msg: "{{ recovery.lines }}"
"""

RETURN = r"""
steps:
  description: The remedies in their order.
  returned: success
  type: list
  elements: dict
  contains:
    remedy:
      description: The remedy; empty where none is known.
      type: str
    subjects:
      description: The checks that it is for.
      type: list
      elements: str
    refused:
      description: Why it may not begin; empty where it may.
      type: str
    advice:
      description: What a person does where it is refused or does not help; may be empty.
      type: str
    waits_until:
      description: When it may begin, in UTC; empty where waiting does not help.
      type: str
    waits:
      description: Whether waiting helps.
      type: bool
    without:
      description: Services that it must leave alone.
      type: list
      elements: str
  sample:
    - remedy: service_restart
      subjects: [celery, services]
      refused: ""
      advice: ""
      waits_until: ""
      without: []
checks:
  description: The checks of both health runs, the second one preferred.
  returned: success
  type: list
  elements: dict
failing:
  description: The names of RV(checks) that fail or could not be measured.
  returned: success
  type: list
  elements: str
to_confirm:
  description: The subjects to measure again before anything is changed. Empty once O(confirmation) is given.
  returned: success
  type: list
  elements: str
max_failures:
  description: What O(max_failures) and O(policy) say together.
  returned: success
  type: int
lines:
  description: The plan for a person, line by line.
  returned: success
  type: list
  elements: str
msg:
  description: The plan in one sentence.
  returned: always
  type: str
"""

import os
import typing as t
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.core.results import OpsError, Result
from ansible_collections.wheels.ops.plugins.module_utils.health import subjects
from ansible_collections.wheels.ops.plugins.module_utils.remedies import plan, recovery_state
from ansible_collections.wheels.ops.plugins.module_utils.remedies import policy as policies
from ansible_collections.wheels.ops.plugins.module_utils.report import recovery_text
from ansible_collections.wheels.ops.plugins.module_utils.services import arguments
from ansible_collections.wheels.ops.plugins.module_utils.state import directory


def _validate(params: t.Mapping[str, t.Any]) -> None:
    policies.check_ranges(params)
    for name in ("checks", "confirmation"):
        for check in params[name] or ():
            missing = [key for key in ("name", "status") if not isinstance(check.get(key), str)]
            if missing:
                raise OpsError(
                    f"Each entry of {name} must have a text {missing[0]},"
                    f" got {', '.join(map(str, check)) or 'nothing'}.",
                    hint="Pass the checks that health_info returned.",
                )


def call(params: t.Mapping[str, t.Any]) -> Result:
    _validate(params)
    policy = policies.parse(
        params["policy"],
        policies.Policy(**{name: params[name] for name in policies.RANGES}),
        remedies=plan.NAMES,
        subjects=subjects.NAMES,
    )
    first, second = params["checks"], params["confirmation"]
    checks = plan.confirm(first, second or [])
    confirmed = None
    if policy.confirm_after:
        confirmed = set(plan.failing(first)) & set(plan.failing(second or []))
    state, warnings = recovery_state.read(
        directory.require(params["state_dir"]),
        params["services"],
        policy,
        confirmed=confirmed,
        ignore_cooldown=params["ignore_cooldown"],
    )
    unavailable = set(params["unavailable"])
    if not params["services"]:
        unavailable.add(plan.SERVICE_RESTART)
    if not os.path.exists(params["token_file"]):
        unavailable.add(plan.CACHE_CLEAR)
    allowed = plan.Allowed(
        services=params["services"],
        unavailable=unavailable,
        forbidden=set(params["forbidden"]),
        deploys=params["deploys"],
        ignore_cooldown=params["ignore_cooldown"],
        policy=policy,
        caller=plan.PLAYBOOK,
    )
    steps = plan.plan(checks, allowed, state)
    begun = [step.remedy for step in steps if not step.refused]
    refused = sum(bool(step.refused) for step in steps)
    return Result(
        msg=f"Remedies: {', '.join(begun) or 'none'}." + (f" Refused: {refused}." if refused else ""),
        warnings=warnings,
        extra={
            "steps": [
                {
                    **asdict(step),
                    "subjects": list(step.subjects),
                    "without": list(step.without),
                    "waits_until": recovery_text.waiting(step.waits_until),
                    "waits": bool(step.waits_until),
                }
                for step in steps
            ],
            "checks": checks,
            "failing": plan.failing(checks),
            "to_confirm": [] if second is not None else plan.to_confirm(first, policy),
            "max_failures": policy.max_failures,
            "lines": recovery_text.plan_lines(checks, steps),
        },
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "checks": {"type": "list", "elements": "dict", "required": True},
            "confirmation": {"type": "list", "elements": "dict"},
            "confirm_after": {"type": "float", "default": 5},
            "services": {**arguments.SERVICES, "default": []},
            "unavailable": {"type": "list", "elements": "str", "choices": list(plan.NAMES), "default": []},
            "forbidden": {"type": "list", "elements": "str", "choices": list(plan.NAMES), "default": []},
            "deploys": {"type": "bool", "default": False},
            # It is a path, not a secret.
            "token_file": {"type": "path", "default": "/etc/wheels-ops/ops-token", "no_log": False},
            "cooldown": {"type": "float", "default": 600},
            "max_cooldown": {"type": "float", "default": 14400},
            "ignore_cooldown": {"type": "bool", "default": False},
            "budget": {"type": "int", "default": 6},
            "max_restarts": {"type": "int", "default": 3},
            "max_failures": {"type": "int", "default": 2},
            "policy": {"type": "dict", "default": {}},
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
        },
        supports_check_mode=True,
    )
    run(module, lambda: call(module.params))


if __name__ == "__main__":
    main()
