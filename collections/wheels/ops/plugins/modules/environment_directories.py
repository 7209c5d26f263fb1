#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: environment_directories
short_description: Create the ops token and the directories of the backend's environment
version_added: 1.1.0
description:
  - Creates the directory of the file with the environment variables, the ops token, and the directories that the
    backend writes to, in one round trip.
  - The token is created once and kept. To change it, add a second line, change the clients, and remove the first line.
  - Refused where the directory of the token, or one above it, can be changed by another user than root and that of the
    task.
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
options:
  token_file:
    description: The file with the ops token, created with mode 0600.
    type: path
    required: true
  variables_file:
    description: The file with the environment variables. Its directory is created, the file is not.
    type: path
    required: true
  directories:
    description: Directories that the backend writes to, created with mode 0700.
    type: list
    elements: path
    default: []
  owner:
    description:
      - The user of the backend, who gets the token and O(directories). O(state_dir) becomes traversable for that user.
      - Empty for the user of the task.
    type: str
    default: ""
  state_dir:
    description: The state directory.
    type: path
    default: /var/lib/wheels-ops
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Create the token and the directories
  wheels.ops.environment_directories:
    token_file: /etc/wheels-ops/ops-token
    variables_file: /etc/wheels-ops/backend.env
    directories: [/var/lib/wheels-ops/metrics, /var/lib/wheels-ops/requests]
    owner: pam
"""

RETURN = r"""
before:
  description: What was C(missing).
  returned: success
  type: dict
after:
  description: What is C(missing) now, nothing.
  returned: success
  type: dict
actions:
  description: What was created, or given its mode and owner, with C(was) and C(is).
  returned: success
  type: list
  elements: dict
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.remedies import environment_directories


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "token_file": {"type": "path", "required": True, "no_log": False},
            "variables_file": {"type": "path", "required": True},
            "directories": {"type": "list", "elements": "path", "default": []},
            "owner": {"type": "str", "default": ""},
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
        },
        supports_check_mode=True,
    )
    run(module, lambda: environment_directories.create(**module.params, check_mode=module.check_mode))


if __name__ == "__main__":
    main()
