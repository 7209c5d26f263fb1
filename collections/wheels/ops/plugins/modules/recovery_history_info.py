#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: recovery_history_info
short_description: Read the recovery history
version_added: 1.0.0
description:
  - Gives the newest records of C(history.jsonl) in the state directory.
extends_documentation_fragment:
  - wheels.ops.attributes.info
options:
  state_dir:
    description: Where C(history.jsonl) lies.
    type: path
    default: /var/lib/wheels-ops
  limit:
    description: How many records, 1 to 10000.
    type: int
    default: 50
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: What was done lately
  wheels.ops.recovery_history_info:
    limit: 10
"""

RETURN = r"""
history:
  description: The records, newest first.
  returned: success
  type: list
  elements: dict
damaged_lines:
  description: How many lines of the whole history are no records, and were passed over.
  returned: success
  type: int
msg:
  description: How many there are.
  returned: always
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.core.options import in_range
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result
from ansible_collections.wheels.ops.plugins.module_utils.state import history


def call(module: AnsibleModule) -> Result:
    in_range("limit", module.params["limit"], 1, 10000)
    path = Path(module.params["state_dir"]) / history.FILE
    records, damaged = history.read_and_count(path, module.params["limit"])
    warnings = [f"{damaged} lines of {path} are damaged and were passed over."] if damaged else []
    return Result(
        msg=f"{len(records)} records.",
        extra={"history": [record.as_json() for record in records], "damaged_lines": damaged},
        warnings=warnings,
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
            "limit": {"type": "int", "default": 50},
        },
        supports_check_mode=True,
    )
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
