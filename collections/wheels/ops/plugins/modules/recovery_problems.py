#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: recovery_problems
short_description: Follow the problems of a host over runs, and tell people of changes
version_added: 1.1.0
description:
  - A problem is a check that fails. It begins, is being treated, escalates when only a person can help, and ends.
  - Updates the open problems in C(problems.json) of the state directory by what one run measured and did, tells the
    receivers of O(alerts) of what changed, and adds O(record) to the history where something changed or was done.
  - A problem that lasts is told once and not once a run. What a receiver did not take is sent again by later runs.
  - A receiver that fails is a warning and never hides the problem.
  - Keeping the problems is bookkeeping and never counts as a change of the host.
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: none
    details: Nothing of the host is changed.
  idempotent:
    support: none
    description: Every run counts as one that found the problems.
options:
  before:
    description: The RV(wheels.ops.health_info#module:checks) of the health run before the remedies.
    type: list
    elements: dict
    required: true
  after:
    description: Those of the health run after the remedies. Without them, nothing was done.
    type: list
    elements: dict
  attempts:
    description: What became of the remedies, as C(attempts) of P(wheels.ops.recovery_report#filter).
    type: list
    elements: dict
    default: []
  confirmed:
    description: Whether a failure was measured twice. If not, a new failure begins a problem in the next run.
    type: bool
    default: true
  max_failures:
    description: A remedy that did not help as often is left to a person, 0 to 1000; 0 never.
    type: int
    default: 2
  host:
    description: What the alerts call this host. Its own name by default.
    type: str
    default: ""
  runbook_url:
    description: >-
      Where the runbooks that alerts link to are published, with C({name}) for the name of the page. Without it they are named as
      files of the repository.
    type: str
    default: ""
    version_added: 1.1.0
  state_dir:
    description: Where C(problems.json) and C(history.jsonl) lie.
    type: path
    default: /var/lib/wheels-ops
  record:
    description: The record for the history, as M(wheels.ops.recovery_history) takes it. Without it none is added.
    type: dict
  always_record:
    description: Add O(record) although nothing changed, such as for a request that was handled.
    type: bool
    default: false
  alerts:
    description: Who is told.
    type: list
    elements: dict
    default: []
    suboptions:
      type:
        description: The kind of receiver.
        type: str
        choices: [webhook, slack, alertmanager, email, syslog]
        required: true
      name:
        description: What messages call it. Required where two have the same type.
        type: str
      url:
        description: Where V(webhook), V(slack) and V(alertmanager) take the alert.
        type: str
      headers:
        description: Further headers for the receivers with O(alerts[].url).
        type: dict
      server:
        description: HOST:PORT of the mail server, or of a syslog server. Without it syslog is C(/dev/log).
        type: str
      sender:
        description: The address that mails come from.
        type: str
      to:
        description: The addresses that mails go to.
        type: list
        elements: str
      username:
        description: For the mail server.
        type: str
      password:
        description: For the mail server.
        type: str
      tls:
        description: How the connection with the mail server is encrypted.
        type: str
        choices: [starttls, tls, none]
        default: starttls
      minimum:
        description: Problems that never were as bad are not told.
        type: str
        choices: [warning, critical]
        default: warning
      timeout:
        description: Seconds for each try, 0.1 to 120.
        type: float
        default: 10
seealso:
  - module: wheels.ops.recovery_plan_info
  - module: wheels.ops.recovery_history
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Run all health checks
  wheels.ops.health_info:
    redis_url: redis://127.0.0.1:6379/0
  register: health

- name: Tell the people on call of what has begun and ended
  wheels.ops.recovery_problems:
    before: "{{ health.checks }}"
    confirmed: false
    alerts:
      - type: slack
        url: "{{ vault_slack_url }}"
      - type: email
        server: mail.example.com:587
        sender: pam@example.com
        to: [oncall@example.com]
        minimum: critical
"""

RETURN = r"""
problems:
  description: The problems that are open now.
  returned: success
  type: list
  elements: dict
  sample:
    - subject: disk
      status: critical
      state: being treated
      since: 1753834260.0
      runs: 3
      failures: {disk_cleanup: 1}
changes:
  description: What changed in this run.
  returned: success
  type: list
  elements: dict
delivered:
  description: The alerts that were taken.
  returned: success
  type: list
  elements: str
recorded:
  description: Whether a record was, or would be, added to the history.
  returned: success
  type: bool
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

import socket
import typing as t
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.core.options import in_range
from ansible_collections.wheels.ops.plugins.module_utils.core.results import OpsError, Result
from ansible_collections.wheels.ops.plugins.module_utils.remedies.plan import TRIED
from ansible_collections.wheels.ops.plugins.module_utils.report import alerts, runbooks
from ansible_collections.wheels.ops.plugins.module_utils.state import directory, history
from ansible_collections.wheels.ops.plugins.module_utils.state.problems import Attempt


def _attempts(entries: t.Sequence[t.Mapping[str, t.Any]]) -> t.List[Attempt]:
    try:
        return [Attempt(**{**entry, "subjects": tuple(entry["subjects"])}) for entry in entries]
    except (KeyError, TypeError) as error:
        raise OpsError(
            f"attempts has an entry of another shape: {error}.", hint="Pass the attempts of recovery_report."
        ) from None


def call(module: AnsibleModule) -> Result:
    params = module.params
    in_range("max_failures", params["max_failures"], 0, 1000)
    runbooks.require(params["runbook_url"])
    state = directory.require(params["state_dir"])
    attempts = _attempts(params["attempts"])
    outcome = alerts.record(
        state,
        params["before"],
        params["after"] if params["after"] is not None else params["before"],
        attempts,
        alerts.parse([{key: value for key, value in entry.items() if value is not None} for entry in params["alerts"]]),
        params["host"] or socket.gethostname(),
        confirmed=params["confirmed"],
        max_failures=params["max_failures"],
        check_mode=module.check_mode,
        runbook_url=params["runbook_url"],
    )
    changes = [change.as_json() for change in outcome.changes]
    notable = bool(changes) or params["always_record"] or any(attempt.outcome in TRIED for attempt in attempts)
    recorded = params["record"] is not None and notable
    if recorded and not module.check_mode:
        path = Path(state) / history.FILE
        history.append(path, history.HistoryRecord.from_json({**params["record"], "problems": changes}))
    kinds = [f"{entry['subject']} {entry['change']}" for entry in changes]
    return Result(
        msg=f"{len(outcome.problems.problems)} open problems"
        + (f"; {', '.join(kinds)}." if kinds else "; none of them changed." if outcome.problems.problems else "."),
        warnings=list(outcome.warnings),
        extra={
            "problems": [asdict(problem) for problem in outcome.problems.problems],
            "changes": changes,
            "delivered": list(outcome.delivered),
            "recorded": recorded,
        },
    )


def main() -> None:
    receiver = {
        "type": {"type": "str", "choices": list(alerts.TYPES), "required": True},
        "name": {"type": "str"},
        "url": {"type": "str", "no_log": True},
        "headers": {"type": "dict", "no_log": True},
        "server": {"type": "str"},
        "sender": {"type": "str"},
        "to": {"type": "list", "elements": "str"},
        "username": {"type": "str"},
        "password": {"type": "str", "no_log": True},
        "tls": {"type": "str", "choices": ["starttls", "tls", "none"], "default": "starttls"},
        "minimum": {"type": "str", "choices": ["warning", "critical"], "default": "warning"},
        "timeout": {"type": "float", "default": 10},
    }
    module = AnsibleModule(
        argument_spec={
            "before": {"type": "list", "elements": "dict", "required": True},
            "after": {"type": "list", "elements": "dict"},
            "attempts": {"type": "list", "elements": "dict", "default": []},
            "confirmed": {"type": "bool", "default": True},
            "max_failures": {"type": "int", "default": 2},
            "host": {"type": "str", "default": ""},
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
            "record": {"type": "dict"},
            "always_record": {"type": "bool", "default": False},
            "runbook_url": {"type": "str", "default": ""},
            "alerts": {"type": "list", "elements": "dict", "default": [], "options": receiver},
        },
        supports_check_mode=True,
    )
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
