#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_info
short_description: Measure what a deployment needs of a host
version_added: 1.1.0
description:
  - Says in one round trip whether the virtual environment of this collection works, whether the backend is there and
    can be written, and how much space is free.
  - Needs nothing but Python's standard library, so it runs before that virtual environment is there.
extends_documentation_fragment:
  - wheels.ops.attributes.info
options:
  interpreter:
    description: The Python of the virtual environment.
    type: path
    required: true
  modules:
    description: What has to be installed there.
    type: list
    elements: str
    required: true
  backend_dir:
    description: The directory that holds the backend's C(app).
    type: path
    required: true
  application:
    description: A file below O(backend_dir) that every release of the backend has.
    type: str
    default: app/main.py
  state_dir:
    description: Where the originals of replaced files are kept. It need not be there yet.
    type: path
    default: /var/lib/wheels-ops
  system_python:
    description: The Python of the host that makes the virtual environment.
    type: path
    default: /usr/bin/python3
    version_added: 1.1.0
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Look at the host
  wheels.ops.preflight_info:
    interpreter: /opt/wheels-ops/venv/bin/python
    modules: [psycopg2, redis, requests, websocket]
    backend_dir: /production
  register: host
"""

RETURN = r"""
environment:
  description: Whether the interpreter starts and has every one of the modules.
  returned: success
  type: bool
system:
  description: "The host: C(name) such as C(debian 12), C(machine) such as C(x86_64), C(python), the version of
    O(system_python) and empty for none, and C(venv), whether that makes virtual environments."
  returned: success
  type: dict
application:
  description: Whether the application is there.
  returned: success
  type: bool
directory:
  description: The directory of the application.
  returned: success
  type: str
writable:
  description: Whether the user of the task may write to that directory, and its file system is not read-only.
  returned: success
  type: bool
free:
  description: C(bytes) that are free for O(backend_dir) and O(state_dir), and C(path) of the mount point; of two file
    systems the one with less.
  returned: success
  type: dict
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.host import preflight


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "interpreter": {"type": "path", "required": True},
            "modules": {"type": "list", "elements": "str", "required": True},
            "backend_dir": {"type": "path", "required": True},
            "application": {"type": "str", "default": "app/main.py"},
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
            "system_python": {"type": "path", "default": "/usr/bin/python3"},
        },
        supports_check_mode=True,
    )
    run(module, lambda: preflight.look(**module.params))


if __name__ == "__main__":
    main()
