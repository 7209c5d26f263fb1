#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: recovery_requests
short_description: Read and acknowledge recovery requests
version_added: 1.0.0
description:
  - The health API leaves a request at C(POST /api/v1/system/recovery/trigger), and where a database does not come back
    or memory stays short.
  - The playbook C(recover) reads them first and takes them away when it has noted what it did, so a run that fails
    loses none.
  - A request says that something is wanted, never what is to be done. The backend's user can write anything there.
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: none
    description: The requests are in the result.
options:
  state_dir:
    description: Where the directory C(requests) lies.
    type: path
    default: /var/lib/wheels-ops
  done:
    description: Ids of requests to take away, as an earlier run returned them. Without any the module only reads.
    type: list
    elements: str
    default: []
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: What does the backend want
  wheels.ops.recovery_requests:
  register: wanted

- name: It is done
  wheels.ops.recovery_requests:
    done: "{{ (wanted.requests + wanted.refused) | map(attribute='id') | list }}"
"""

RETURN = r"""
requests:
  description: What is pending, oldest first, with C(id), C(time), C(kind) (V(recover), V(restart) or V(alert)),
    C(reason), C(requested_by) and C(service).
  returned: success
  type: list
  elements: dict
refused:
  description: Files that are no requests, with C(id) and C(why).
  returned: success
  type: list
  elements: dict
before:
  description: The number C(pending) before.
  returned: success
  type: dict
after:
  description: The number C(pending) afterwards.
  returned: success
  type: dict
actions:
  description: What was, or would be, taken away.
  returned: success
  type: list
  elements: dict
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.state import requests


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
            "done": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    run(
        module,
        lambda: requests.handle(
            Path(module.params["state_dir"]) / "requests", module.params["done"], check_mode=module.check_mode
        ),
    )


if __name__ == "__main__":
    main()
