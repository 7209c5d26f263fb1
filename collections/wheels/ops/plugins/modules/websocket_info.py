#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: websocket_info
short_description: Check a WebSocket endpoint
version_added: 1.0.0
description:
  - Makes the handshake, measures round trips, waits for the heartbeat of the server where that is asked for, and closes
    in good order.
  - Says how each of them went, and what a refusal means.
  - The task does not fail because of a bad socket. Assert on RV(check.status).
options:
  url:
    description: The address, C(ws://) or C(wss://).
    type: str
    required: true
  token:
    description: The token for the query parameter C(token). It is not shown.
    type: str
  origin:
    description: The origin of the page; none is sent where it is not given, as from a program that is no browser.
    type: str
  foreign_origin:
    description: An origin that must not get a connection. It is tried first.
    type: str
  headers:
    description: Further headers of the handshake.
    type: dict
    default: {}
  subprotocols:
    description: Subprotocols to offer.
    type: list
    elements: str
    default: []
  round_trips:
    description: How many pings are sent one after another, 0 to 1000.
    type: int
    default: 3
  ping:
    description:
      - V(frame) is a control frame, which the server's library answers.
      - V(json) is the backend's own message of C(type) C(ping), which its code answers.
    type: str
    choices: [frame, json, none]
    default: frame
  heartbeat_within:
    description: Seconds to wait for O(heartbeats) pings of the server, up to 600; 0 does not wait.
    type: float
    default: 0
  heartbeats:
    description: How many pings of the server have to arrive, 1 to 100. Two or more give the period.
    type: int
    default: 1
  timeout:
    description: Seconds for the handshake, for each round trip and for the close, up to 300.
    type: float
    default: 5
  max_latency_ms:
    description: A median round trip above this is a warning, in milliseconds, above 0 and up to 600000.
    type: float
    default: 1000
  validate_certs:
    description: Whether the certificate has to be valid.
    type: bool
    default: true
requirements:
  - websocket-client
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes.info
seealso:
  - module: wheels.ops.cors_info
"""

EXAMPLES = r"""
- name: Try the chat's socket and wait for two heartbeats
  wheels.ops.websocket_info:
    url: ws://127.0.0.1:8000/api/v1/pam/ws/probe
    token: "{{ probe_token }}"
    origin: https://wheelsandwins.com
    foreign_origin: https://evil.example
    ping: json
    heartbeat_within: 45
    heartbeats: 2
  register: socket

- name: It has to hold
  ansible.builtin.assert:
    that: socket.check.status in ["ok", "warning"]
    fail_msg: "{{ socket.msg }}"
"""

RETURN = r"""
check:
  description: The check as every check is given.
  returned: success
  type: dict
  contains:
    status:
      description:
        - V(ok), V(warning) where it is slow, V(critical) where it does not work or lets a foreign origin in.
        - V(unknown) where the name of the host does not resolve, so that nobody was asked.
      type: str
    value:
      description: The median round trip in milliseconds.
      type: float
    message:
      description: What is wrong.
      type: str
    details:
      description:
        - C(handshake_ms), C(round_trips_ms), C(heartbeats_s) (seconds after the wait began), C(heartbeat_period_s),
          C(close) with C(clean),
          C(code) and C(duration_ms), C(foreign_origin_refused), which is none where no server answered.
      type: dict
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
from ansible_collections.wheels.ops.plugins.module_utils.checks import websocket
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "token": {"type": "str", "no_log": True},
            "origin": {"type": "str"},
            "foreign_origin": {"type": "str"},
            "headers": {"type": "dict", "default": {}, "no_log": True},
            "subprotocols": {"type": "list", "elements": "str", "default": []},
            "round_trips": {"type": "int", "default": 3},
            "ping": {"type": "str", "choices": ["frame", "json", "none"], "default": "frame"},
            "heartbeat_within": {"type": "float", "default": 0},
            "heartbeats": {"type": "int", "default": 1},
            "timeout": {"type": "float", "default": 5},
            "max_latency_ms": {"type": "float", "default": 1000},
            "validate_certs": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    p = module.params

    def call() -> Result:
        check = websocket.check(
            p["url"],
            token=p["token"] or "",
            origin=p["origin"] or "",
            foreign_origin=p["foreign_origin"] or "",
            headers=p["headers"],
            subprotocols=p["subprotocols"],
            round_trips=p["round_trips"],
            ping=p["ping"],
            heartbeat_within=p["heartbeat_within"],
            heartbeats=p["heartbeats"],
            timeout=p["timeout"],
            max_latency_ms=p["max_latency_ms"],
            validate_certs=p["validate_certs"],
        )
        return Result(msg=check.message, extra={"check": check.as_dict()})

    run(module, call)


if __name__ == "__main__":
    main()
