# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Options of several modules: ``services`` and those of the service manager.

Kept in step with ``doc_fragments/services.py`` and ``doc_fragments/service_manager.py``. What ``services`` holds is
checked by ``model.parse_services``.
"""

from __future__ import annotations

import typing as t

_GATE: t.Dict[str, t.Any] = {
    "type": {"type": "str", "choices": ["none", "state", "tcp", "http", "redis", "celery", "beat"], "default": "state"},
    # The address of a broker may hold a password: with no_log it would blank every "redis" of the result, so messages
    # mask it instead.
    "url": {"type": "str", "no_log": False},
    "host": {"type": "str", "default": "127.0.0.1"},
    "port": {"type": "int"},
    "status": {"type": "list", "elements": "int", "default": [200]},
    "body_regex": {"type": "str"},
    "body_json": {"type": "dict", "default": {}},
    "headers": {"type": "dict", "default": {}, "no_log": True},
    "validate_certs": {"type": "bool", "default": True},
    "timeout": {"type": "float", "default": 5},
    "verify_owner": {"type": "bool", "default": True},
    "node": {"type": "str"},
    "app": {"type": "str"},
    "schedule_file": {"type": "path"},
    "min_healthy_time": {"type": "float"},
    "healthy_deadline": {"type": "float"},
}
SERVICES: t.Dict[str, t.Any] = {
    "type": "list",
    "elements": "dict",
    "options": {
        "name": {"type": "str", "required": True},
        "unit": {"type": "str"},
        "depends_on": {"type": "list", "elements": "str", "default": []},
        "watch_files": {"type": "list", "elements": "path", "default": []},
        "gate": {"type": "dict", "default": {}, "options": _GATE},
    },
}
#: Read by ``manager.from_params``.
MANAGER: t.Dict[str, t.Dict[str, t.Any]] = {
    "service_manager": {
        "type": "str",
        "choices": ["auto", "systemd", "systemd_user", "supervisor", "compose"],
        "default": "auto",
        "aliases": ["manager"],
    },
    "supervisor_socket": {"type": "path", "default": ""},
    "supervisor_username": {"type": "str", "default": ""},
    "supervisor_password": {"type": "str", "default": "", "no_log": True},
}
