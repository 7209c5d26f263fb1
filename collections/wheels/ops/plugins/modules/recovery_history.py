#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: recovery_history
short_description: Append a record to the recovery history
version_added: 1.0.0
description:
  - Adds one record to C(history.jsonl) in the state directory; the health API shows it at
    C(/api/v1/system/recovery/history).
  - The file is bounded, the oldest records are dropped first. Writing it is bookkeeping and never counts as a change.
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
  idempotent:
    support: none
    description: Every run adds a record.
options:
  state_dir:
    description: Where C(history.jsonl) lies.
    type: path
    default: /var/lib/wheels-ops
  record:
    description:
      - The record. C(time) is added. Its keys are C(run_id), C(trigger), C(requests), C(host), C(action), C(subject),
        C(before) and
        C(after) (the checks that failed before and after the run), C(not_checked) (those that were skipped),
        C(outcome), C(errors),
        C(results), C(bytes_freed), and C(started_at) or C(duration_s). Other keys are kept as they are.
      - With C(after), the outcome is V(healthy), V(healthy, 2 not checked) or V(not healthy), unless C(outcome) says
        something else.
      - With C(started_at), a time like V(2025-07-30T02:11:00Z), C(duration_s) is measured from then.
    type: dict
    required: true
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Note the recovery
  wheels.ops.recovery_history:
    record:
      run_id: "20250730T0211"
      trigger: manual
      action: service_restart
      outcome: healthy
"""

RETURN = r"""
record:
  description: The record that was, or would be, written.
  returned: success
  type: dict
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result
from ansible_collections.wheels.ops.plugins.module_utils.state import history


def call(module: AnsibleModule) -> Result:
    path = Path(module.params["state_dir"]) / history.FILE
    record = history.HistoryRecord.from_json(module.params["record"])
    record = record.completed(time.time()) if module.check_mode else history.append(path, record)
    return Result(msg=f"Noted in {path}.", extra={"record": record.as_json()})


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
            "record": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
