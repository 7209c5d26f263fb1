#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: backend_info
short_description: Find the backend of a host and what an inventory has to say of it
version_added: 1.1.0
description:
  - Recognises services of systemd and supervisord by what they execute, never by their name, and reads from their
    processes and files what the variables of this collection are.
  - Addresses that hold passwords are not read out. They are given as references to the file and the variable where the
    backend itself reads them, such as C(file:///etc/api.env#DATABASE_URL).
  - Says what it could not find and which variable to set.
  - Executes nothing of the backend. It asks the backend for a few health paths by HTTP.
  - Needs nothing but Python's standard library. Needs root to see services of other users.
extends_documentation_fragment:
  - wheels.ops.attributes.info
  - wheels.ops.service_manager
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Find the backend
  wheels.ops.backend_info:
  register: backend
"""

RETURN = r"""
variables:
  description: "Variables of an inventory in the order in which they are written: C(name), C(value), and C(evidence),
    where it comes from."
  returned: success
  type: list
  elements: dict
missing:
  description: "What was not found: C(what), C(variable) that a person has to set, and C(advice)."
  returned: success
  type: list
  elements: dict
notes:
  description: What a person should know besides.
  returned: success
  type: list
  elements: str
services:
  description: "The services that were recognised: C(name), C(kind), C(state), C(running), C(user), C(ports), and
    C(memory_limit_mb), which is 0 for none."
  returned: success
  type: list
  elements: dict
front_ends:
  description: The proxies that run before the backend.
  returned: success
  type: list
  elements: str
release:
  description: The commit or the name of the release; empty where nothing says so.
  returned: success
  type: str
websocket_paths:
  description: The WebSocket paths that the source of the application mounts.
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
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result
from ansible_collections.wheels.ops.plugins.module_utils.services import arguments, discovery


def call(module: AnsibleModule) -> Result:
    params = module.params
    discovered = discovery.discover(
        params["service_manager"],
        params["supervisor_socket"],
        username=params["supervisor_username"],
        password=params["supervisor_password"],
    )
    services, missing = len(discovered.services), len(discovered.missing)
    return Result(
        msg=f"{services} services were recognised; {missing} things were not found.", extra=discovered.as_dict()
    )


def main() -> None:
    module = AnsibleModule(argument_spec={**arguments.MANAGER}, supports_check_mode=True)
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
