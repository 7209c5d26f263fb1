#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: cors_info
short_description: Check a CORS policy with real preflight requests
version_added: 1.0.0
description:
  - Sends real preflights from the origins that have to be allowed, with each method and all headers, and reads the
    answers by the rules of
    the Fetch standard.
  - Sends them from foreign origins too, which must not be given anything. An answer that reflects a foreign origin is
    critical, whatever
    its status.
  - The task does not fail because of a bad policy. Assert on C(check.status).
options:
  base_url:
    description: Scheme, host and port of the backend.
    type: str
    required: true
  path:
    description: The path that is preflighted. It has to be one that the backend serves.
    type: str
    default: /api/v1/pam/chat
  simple_path:
    description: A path for a plain C(GET) across origins as well. None is asked where it is not given.
    type: str
  origins:
    description: Origins that have to be allowed, C(scheme://host[:port]) without a slash at the end.
    type: list
    elements: str
    required: true
  foreign_origins:
    description:
      - Origins that must get nothing. Where it is not given, V(https://evil.example), V(null) and look-alikes of the
        first origin are tried
        (a suffix, a prefix, another scheme, another port, a dot replaced).
    type: list
    elements: str
  methods:
    description: Methods that every origin asks for.
    type: list
    elements: str
    default: [GET, POST, PUT, DELETE]
  headers:
    description: Headers that every preflight asks for. C(apikey) and C(x-client-info) are what supabase-js sends.
    type: list
    elements: str
    default: [authorization, content-type]
  credentials:
    description: Whether the pages send cookies or C(Authorization), so that C(*) does not do.
    type: bool
    default: true
  timeout:
    description: Seconds for one request, up to 300.
    type: float
    default: 5
  validate_certs:
    description: Whether the certificate has to be valid.
    type: bool
    default: true
requirements:
  - requests
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes.info
seealso:
  - module: wheels.ops.websocket_info
"""

EXAMPLES = r"""
- name: Try the CORS policy
  wheels.ops.cors_info:
    base_url: http://127.0.0.1:8000
    origins: [https://wheelsandwins.com, https://www.wheelsandwins.com]
    headers: [authorization, content-type, apikey, x-client-info]
  register: cors

- name: No foreign site may read an answer
  ansible.builtin.assert:
    that: cors.check.status == "ok"
    fail_msg: "{{ cors.msg }}"
"""

RETURN = r"""
check:
  description: The check as every check is given.
  returned: success
  type: dict
  contains:
    status:
      description: V(ok), V(critical) where one answer is wrong, or V(unknown) where the name of the host does not
        resolve.
      type: str
    value:
      description: Right answers in percent.
      type: float
    message:
      description: What is wrong first.
      type: str
    details:
      description: C(reflected) names the foreign origins that were let in, C(exchanges) every request with its answer.
      type: dict
exchanges:
  description: Every request with C(kind), C(origin), C(method), C(status), C(expected), C(passed), C(why) and the
    headers that decided.
  returned: success
  type: list
  elements: dict
msg:
  description: The message of the check.
  returned: always
  type: str
before:
  description: Empty, as nothing is changed.
  returned: success
  type: dict
after:
  description: Empty, as nothing is changed.
  returned: success
  type: dict
actions:
  description: Empty, as nothing is changed.
  returned: success
  type: list
  elements: dict
diff:
  description: Empty, as nothing is changed.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.checks import cors
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "base_url": {"type": "str", "required": True},
            "path": {"type": "str", "default": "/api/v1/pam/chat"},
            "simple_path": {"type": "str"},
            "origins": {"type": "list", "elements": "str", "required": True},
            "foreign_origins": {"type": "list", "elements": "str"},
            "methods": {"type": "list", "elements": "str", "default": ["GET", "POST", "PUT", "DELETE"]},
            "headers": {"type": "list", "elements": "str", "default": ["authorization", "content-type"]},
            "credentials": {"type": "bool", "default": True},
            "timeout": {"type": "float", "default": 5},
            "validate_certs": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    p = module.params

    def call() -> Result:
        check = cors.check(
            p["base_url"],
            p["origins"],
            p["methods"],
            p["headers"],
            path=p["path"],
            simple_path=p["simple_path"] or "",
            foreign_origins=p["foreign_origins"],
            credentials=p["credentials"],
            timeout=p["timeout"],
            validate_certs=p["validate_certs"],
        )
        return Result(msg=check.message, extra={"check": check.as_dict(), "exchanges": check.details["exchanges"]})

    run(module, call)


if __name__ == "__main__":
    main()
