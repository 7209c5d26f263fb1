#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: health_info
short_description: Run all health checks on a host concurrently
version_added: 1.0.0
description:
  - Runs all checks in one round trip, each in a thread of its own, and grades what it measured.
  - A subject for which nothing is given (no DSN, no URL) is V(skipped). One that could not be measured is V(unknown),
    which is never shown as healthy.
extends_documentation_fragment:
  - wheels.ops.attributes.info
  - wheels.ops.services
  - wheels.ops.service_manager
options:
  subjects:
    description: What to measure; everything by default.
    type: list
    elements: str
    choices: [memory, cpu, disk, database, rls, redis, http, cors, websocket, tts, celery, services]
  timeout:
    description: Seconds for all checks together.
    type: float
    default: 60
  scope:
    description:
      - V(host) grades memory and CPU of the whole host.
      - V(services) grades those of the services alone, on a machine that serves others too.
    type: str
    choices: [host, services]
    default: host
  thresholds:
    description:
      - Limits by measure, each a dictionary with C(warning), C(critical) and C(emergency).
      - V(memory), V(cpu), V(disk) and V(error_rate) in percent (V(memory) also grades Redis' C(maxmemory)),
        V(response_time_ms) of HTTP answers and of the
        event loop's stall, V(waiting_tasks) of Celery, V(websocket_ms) of a round trip.
      - The incident report's by default.
    type: dict
    default: {}
  base_url:
    description: Where the backend answers, without a path, such as V(http://127.0.0.1:8000).
    type: str
    default: ""
  http_paths:
    description: Paths that must answer below 400 and in time.
    type: list
    elements: str
    default: [/health]
  health_path:
    description:
      - Where a deployed backend says how it is. Its reasons count, but for what is measured from outside (memory, CPU,
        disk, answers, CORS, sockets, speech).
      - A release that has no such path is no fault; empty to not ask.
    type: str
    default: /api/v1/system/health
  stall_path:
    description: A path during whose answer the first of O(http_paths) must stay fast; empty to leave the event loop
      out.
    type: str
    default: /api/memory
  database_dsn:
    description: libpq connection string or URL.
    type: str
    default: ""
  database_tables:
    description: Tables, with their columns, that must be there; those that the backend uses by default.
    type: dict
  schemas:
    description: Schemas whose policies are asked for recursion; all but the system's by default.
    type: list
    elements: str
  redis_url:
    description: URL of Redis, with its password.
    type: str
    default: ""
  cors_origins:
    description: Front ends that must get in.
    type: list
    elements: str
    default: []
  cors_path:
    description: The path that the preflights ask for.
    type: str
    default: /api/v1/pam/chat
  websocket_path:
    description:
      - Path of the WebSocket endpoint, with the token in its query where one is needed.
      - Without a token the handshake is tried, and that the server asks for one.
      - A placeholder in it, such as V({user_id}), becomes the C(sub) of the token.
      - Where it is V(/api/v1/pam/ws/{user_id}), a deployed backend is asked for its routes. Before a deployment
        V(/api/v1/pam/ws) of the releases before August 2025 is tried too, and a release with the later path is asked
        without the token, as it may answer nobody any more after a WebSocket was closed.
    type: str
    default: ""
  websocket_heartbeat_within:
    description: Seconds within which the server must send a heartbeat; 0 to not wait for one.
    type: float
    default: 0
  websocket_dead_peer_within:
    description: Seconds within which a peer that answers no heartbeat must be disconnected; 0 to not try.
    type: float
    default: 0
  tts_path:
    description: The endpoint that synthesises a sample, empty to leave speech out.
    type: str
    default: /api/v1/tts/test
  filesystems:
    description: Paths whose filesystems are measured.
    type: list
    elements: path
    default: [/]
  disk_budgets:
    description: Bytes that directories, joined by V(:), may hold together.
    type: dict
    default: {}
  logs:
    description: Patterns of logs that must stay under O(log_max_bytes).
    type: list
    elements: str
    default: []
  log_max_bytes:
    description: Bytes above which a log is too large.
    type: int
    default: 50000000
  memory_limits_mb:
    description: MiB that each service may use, by name.
    type: dict
    default: {}
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Measure everything
  wheels.ops.health_info:
    base_url: http://127.0.0.1:8000
    database_dsn: "{{ database_dsn }}"
    redis_url: redis://127.0.0.1:6379/0
    cors_origins: [https://wheelsandwins.com]
    services:
      - name: pam-backend
        gate: {type: http, url: http://127.0.0.1:8000/health}
  register: health
"""

RETURN = r"""
status:
  description: The worst status of everything that was measured.
  returned: success
  type: str
  sample: critical
checks:
  description: One entry a subject, in the order of the report.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: The subject., type: str}
    status: {description: "V(ok), V(warning), V(critical), V(emergency), V(unknown) or V(skipped).", type: str}
    value: {description: What was measured., type: raw}
    unit: {description: The unit of the value., type: str}
    thresholds: {description: The limits that graded it., type: dict}
    message: {description: The finding in one sentence., type: str}
    remedy: {description: "The module that cures it, empty where nothing is wrong.", type: str}
    duration_ms: {description: How long the check took., type: float}
    details: {description: Everything else that was measured., type: dict}
failing:
  description: Names of the checks that are not ok.
  returned: success
  type: list
  elements: str
not_measured:
  description: Names of the checks that were not made, as nothing is given for them. They are neither healthy nor
    failing; each is warned about.
  returned: success
  type: list
  elements: str
left_out:
  description: Names of the subjects that O(subjects) leaves out.
  returned: success
  type: list
  elements: str
scores:
  description: Performance, stability and user experience from 0 to 100, null where nothing to judge by was measured.
  returned: success
  type: dict
measured_at:
  description: When, in UTC.
  returned: success
  type: str
duration_ms:
  description: How long all checks took together.
  returned: success
  type: float
msg:
  description: The outcome in words, with what was not measured and why. It says that everything is healthy only where
    every subject was measured.
  returned: always
  type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.checks import suite
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result
from ansible_collections.wheels.ops.plugins.module_utils.health.subjects import NAMES
from ansible_collections.wheels.ops.plugins.module_utils.health.thresholds import parse
from ansible_collections.wheels.ops.plugins.module_utils.report import report
from ansible_collections.wheels.ops.plugins.module_utils.services import arguments


def call(module: AnsibleModule) -> Result:
    options: t.Dict[str, t.Any] = dict(module.params)
    options["subjects"] = options["subjects"] or NAMES
    options["thresholds"] = parse(options["thresholds"])
    health = suite.run(suite.Options(**options))
    # Whoever looks at the end of a run only must see it: a check that was not made is not one that is well.
    warnings = [
        f"Not measured on this host: {', '.join(names)}: {reason}."
        for reason, names in report.not_measured(health).items()
    ]
    return Result(msg=report.summary(health), extra=health, warnings=warnings)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "subjects": {"type": "list", "elements": "str", "choices": list(NAMES)},
            "timeout": {"type": "float", "default": 60},
            "scope": {"type": "str", "choices": ["host", "services"], "default": "host"},
            "thresholds": {"type": "dict", "default": {}},
            "base_url": {"type": "str", "default": ""},
            "http_paths": {"type": "list", "elements": "str", "default": ["/health"]},
            "health_path": {"type": "str", "default": suite.Options.health_path},
            "stall_path": {"type": "str", "default": "/api/memory"},
            "database_dsn": {"type": "str", "default": "", "no_log": True},
            "database_tables": {"type": "dict"},
            "schemas": {"type": "list", "elements": "str"},
            "redis_url": {"type": "str", "default": "", "no_log": True},
            "cors_origins": {"type": "list", "elements": "str", "default": []},
            "cors_path": {"type": "str", "default": "/api/v1/pam/chat"},
            "websocket_path": {"type": "str", "default": "", "no_log": True},
            "websocket_heartbeat_within": {"type": "float", "default": 0},
            "websocket_dead_peer_within": {"type": "float", "default": 0},
            "tts_path": {"type": "str", "default": "/api/v1/tts/test"},
            "filesystems": {"type": "list", "elements": "path", "default": ["/"]},
            "disk_budgets": {"type": "dict", "default": {}},
            "logs": {"type": "list", "elements": "str", "default": []},
            "log_max_bytes": {"type": "int", "default": suite.Options.log_max_bytes},
            "services": {**arguments.SERVICES, "default": []},
            **arguments.MANAGER,
            "memory_limits_mb": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
