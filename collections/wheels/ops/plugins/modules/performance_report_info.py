#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: performance_report_info
short_description: Report long-term performance and suggest thresholds
version_added: 1.0.0
description:
  - Reads what the backend measured (a row for every metric and quarter of an hour, kept for 35 days) and what
    C(history.jsonl) says that was done.
  - Gives a performance report, and for every threshold whether the measured history speaks for another warning limit.
    It sets none.
  - What was not measured is not in the report. Where there is too little history for advice, the verdict is V(unknown)
    and says how much there is.
extends_documentation_fragment:
  - wheels.ops.attributes.info
options:
  state_dir:
    description: Where C(history.jsonl) lies.
    type: path
    default: /var/lib/wheels-ops
  metrics_file:
    description: The backend's metrics; C(metrics/metrics.sqlite) in O(state_dir) by default. It is opened read-only.
    type: path
  base_url:
    description: Where the backend answers, for its alerts, scores and slowest routes; empty to not ask it.
    type: str
    default: ""
  token_file:
    description: The file with the ops token. Without it the backend is not asked, and the report says so.
    type: path
    default: /etc/wheels-ops/ops-token
  days:
    description: How far back, 1 to 35.
    type: int
    default: 30
  minimum_days:
    description: Advice needs so many whole days of measured quarter hours, 1 to O(days).
    type: int
    default: 14
  thresholds:
    description: The limits in force, as M(wheels.ops.health_info) takes them.
    type: dict
    default: {}
  timeout:
    description: Seconds for the backend's answer.
    type: float
    default: 30
author:
  - The wheels.ops maintainers (@wheels-ops)
seealso:
  - module: wheels.ops.health_info
  - module: wheels.ops.recovery_history_info
"""

EXAMPLES = r"""
- name: What the last month was like
  wheels.ops.performance_report_info:
    base_url: http://127.0.0.1:8000
  register: performance

- name: Whether the limits fit
  wheels.ops.performance_report_info:
    days: 35
    thresholds:
      cpu: {warning: 80}
"""

RETURN = r"""
generated_at:
  description: When, in UTC.
  returned: success
  type: str
since:
  description: The begin of the time reported on, in UTC.
  returned: success
  type: str
days:
  description: Its length.
  returned: success
  type: int
quarter_hours:
  description: In how many of its quarter hours anything was measured.
  returned: success
  type: int
metrics:
  description:
    - By name of the metric C(mean), C(lowest) and C(highest) value, C(p95) of the means of the quarter hours, and how
      many C(quarter_hours) there are.
    - Where a threshold is known also C(above_warning_percent), the share of quarter hours above it.
  returned: success
  type: dict
recovery:
  description:
    - How often C(recover) ran, C(healthy), C(healthy_in_part) (some checks were not made) and C(not_healthy); by
      failing check and trigger;
      what maintenance freed.
  returned: success
  type: dict
backend:
  description: The backend's own C(alert_summary), C(scores), C(slowest_routes), C(recommendations) and C(source); empty
    where it was not asked.
  returned: success
  type: dict
advice:
  description: One entry for every threshold.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: The threshold., type: str}
    metric: {description: The metric that it was judged by., type: str}
    unit: {description: Its unit., type: str}
    warning: {description: The limit in force., type: float}
    advised_warning: {description: "Another limit, null where none is advised.", type: float}
    verdict: {description: "V(keep), V(raise), V(lower), V(cure) (the cause, not the limit) or V(unknown).", type: str}
    quarter_hours: {description: How many measured quarter hours it rests on., type: int}
    above_warning_percent: {description: Share of the quarter hours above the limit., type: float}
    p99: {description: What 99 % of the quarter hours did not exceed., type: float}
    reason: {description: Why., type: str}
    settings: {description: Variables of the inventory that would follow the advice., type: dict}
notes:
  description: What could not be had, and why.
  returned: success
  type: list
  elements: str
report_lines:
  description: The report for a terminal.
  returned: success
  type: list
  elements: str
advice_lines:
  description: The advice for a terminal.
  returned: success
  type: list
  elements: str
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.core.results import OpsError, Result
from ansible_collections.wheels.ops.plugins.module_utils.health.thresholds import parse
from ansible_collections.wheels.ops.plugins.module_utils.report import performance
from ansible_collections.wheels.ops.plugins.module_utils.state.ops_token import token_of


def call(module: AnsibleModule) -> Result:
    parameters = module.params
    token, notes = "", []
    if parameters["base_url"]:
        try:
            token = token_of("", parameters["token_file"])
        except OpsError as error:
            notes.append(f"{error} So the backend was not asked for its own report.")
    options = performance.Options(
        state_dir=parameters["state_dir"],
        days=parameters["days"],
        minimum_days=parameters["minimum_days"],
        thresholds=parse(parameters["thresholds"]),
        metrics_file=parameters["metrics_file"] or "",
        base_url=parameters["base_url"],
        token=token,
        timeout=parameters["timeout"],
    )
    content = performance.report(options, notes=notes)
    changes = [entry["name"] for entry in content["advice"] if entry["advised_warning"]]
    basis = f"Measured in {content['quarter_hours']} of {content['days'] * performance.SLOTS_A_DAY} quarter hours"
    advised = f"another limit is advised for {', '.join(changes)}" if changes else "no other limit is advised"
    return Result(msg=f"{basis}; {advised}.", extra=content)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
            "metrics_file": {"type": "path"},
            "base_url": {"type": "str", "default": ""},
            "token_file": {"type": "path", "default": "/etc/wheels-ops/ops-token", "no_log": False},
            "days": {"type": "int", "default": 30},
            "minimum_days": {"type": "int", "default": 14},
            "thresholds": {"type": "dict", "default": {}},
            "timeout": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
