# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The variables that roles and playbooks share: the one place that has their type, their default and their meaning.

The lookup ``wheels.ops.setting`` reads them here, and ``docs/variables.md`` is generated from here (``make docs``).
"""

from __future__ import annotations

import dataclasses
import typing as t

PREFIX = "wheels_ops_"


@dataclasses.dataclass(frozen=True)
class Variable:
    """``kind`` is in the words of an argument specification, where ``dict of float`` and the like say more than it can.

    A text in ``default`` may name another variable in braces, such as ``{wheels_ops_venv}/bin/python``. One without the
    prefix, such as ``{services_redis_url}``, is the variable of a role where it is set, otherwise the shared variable
    of that name (``wheels_ops_redis_url``). ``required`` variables have no default.
    """

    kind: str
    default: t.Any
    description: str
    required: bool = False


#: The services of the incident report, in the order in which they depend on each other.
REPORT_SERVICES: t.List[t.Dict[str, t.Any]] = [
    {
        "name": "redis",
        "unit": "{services_redis_unit}",
        "gate": {"type": "redis", "url": "{services_redis_url}"},
    },
    {
        "name": "pam-backend",
        "depends_on": ["redis"],
        "gate": {"type": "http", "url": "{services_base_url}/health"},
    },
    {
        "name": "celery-worker",
        "depends_on": ["redis"],
        "gate": {"type": "celery", "url": "{services_redis_url}"},
    },
    {
        "name": "celery-beat",
        "depends_on": ["redis"],
        # Beats of another broker belong to another installation.
        "gate": {"type": "beat", "url": "{services_redis_url}", "schedule_file": "{services_schedule_file}"},
    },
]

SHARED: t.Dict[str, Variable] = {
    "wheels_ops_address": Variable(
        "str", "", "Host to look at, as USER@HOST:PORT. Empty: the hosts of the inventory. Given with `-e`."
    ),
    "wheels_ops_alert_host": Variable(
        "str",
        "",
        "Host to which `recover` keeps itself: the exact name of one host of the run, else it refuses. Set by the"
        " rulebook ([event-driven.md](event-driven.md)).",
    ),
    "wheels_ops_alerts": Variable(
        "list of dict",
        [],
        "Who is told when a problem begins, escalates or ends. See [recovery.md](recovery.md).",
    ),
    "wheels_ops_backend_dir": Variable("str", "/production", "Directory that contains the backend's `app`."),
    "wheels_ops_backend_python": Variable(
        "str", "", "Python interpreter of the backend. Empty: the one that the running service uses."
    ),
    "wheels_ops_backend_user": Variable(
        "str",
        "",
        "User that the backend runs as. It owns the ops token and the directories that the backend writes to."
        " Empty: the user of the running service, or the owner of the files.",
    ),
    "wheels_ops_base_url": Variable("str", "http://127.0.0.1:8000", "URL of the backend, as its own host reaches it."),
    "wheels_ops_cors_origins": Variable(
        "list of str",
        ["https://wheelsandwins.com", "https://www.wheelsandwins.com"],
        "Origins of the front ends, which the CORS check requires to be allowed.",
    ),
    "wheels_ops_database_dsn": Variable(
        "str",
        "",
        "PostgreSQL connection string or URL (secret), or a reference to the variable of a file on the host, such as"
        " `file:///etc/api.env#DATABASE_URL`. Empty: the checks `database` and `rls` are skipped.",
    ),
    "wheels_ops_deployment_id": Variable(
        "str", "", "Deployment to roll back. Empty: the newest, or the one that was interrupted."
    ),
    "wheels_ops_disk_budgets": Variable(
        "dict of float", {}, "Bytes that directories may hold; a key is one directory, or several joined by `:`."
    ),
    "wheels_ops_drain_command": Variable(
        "list of str",
        [],
        "Command, word by word, that takes a host out of the proxies' rotation before its services restart, and ends when"
        " it serves nobody any more. Empty: there is no proxy to tell. See [fleet.md](fleet.md).",
    ),
    "wheels_ops_eda_host": Variable(
        "str", "127.0.0.1", "Address on which the rulebook listens. See [event-driven.md](event-driven.md)."
    ),
    "wheels_ops_eda_port": Variable("int", 5000, "Port on which the rulebook listens."),
    "wheels_ops_eda_token": Variable(
        "str", None, "Bearer token that Alertmanager sends to the rulebook (secret).", required=True
    ),
    "wheels_ops_environment_extra": Variable(
        "dict of scalar", {}, "Further environment variables of the backend, or other values."
    ),
    "wheels_ops_environment_file": Variable(
        "str", "/etc/wheels-ops/backend.env", "File with the environment variables of the backend and its workers."
    ),
    "wheels_ops_filesystems": Variable(
        "list of str", ["/"], "Paths whose file systems are measured. Empty: none, only `wheels_ops_disk_budgets`."
    ),
    "wheels_ops_force": Variable(
        "bool",
        False,
        "Replace or roll back patched files although somebody else changed them after the deployment; a copy is kept.",
    ),
    "wheels_ops_full_diff": Variable(
        "bool", False, "Have `--diff` show every line of the patched files; otherwise it has one line for each file."
    ),
    "wheels_ops_health_must_pass": Variable(
        "bool", False, "Whether `health` fails where a check fails, as a scheduled job should. See [awx.md](awx.md)."
    ),
    "wheels_ops_hosts": Variable(
        "raw", "backend", "Host pattern of the run. The same for all hosts, or given with `-e`."
    ),
    "wheels_ops_inventory": Variable(
        "str", "", "Directory of the inventory that `discover` writes. Empty: that of the host."
    ),
    "wheels_ops_lock_force": Variable(
        "raw", "", "Holder of a stale lock that this run may take over, as the error message names it."
    ),
    "wheels_ops_log_directories": Variable(
        "list of str",
        [],
        "Directories whose `*.log` are rotated and measured. Empty: nothing is rotated, `/var/log` is measured.",
    ),
    "wheels_ops_log_max_size": Variable(
        "str", "50MB", "Size above which a log is rotated, and above which the disk check reports it."
    ),
    "wheels_ops_memory_limits_mb": Variable("dict of float", {}, "MiB that each service may use, by service name."),
    "wheels_ops_monitor_config": Variable(
        "str", "/etc/wheels-ops/monitor.json", "Configuration file of the standalone programs."
    ),
    "wheels_ops_program_dir": Variable("str", "/opt/wheels-ops", "Directory of the standalone programs."),
    "wheels_ops_proxies": Variable(
        "list of str",
        ["localhost"],
        "Where `wheels_ops_drain_command` and `wheels_ops_restore_command` run, one after the other: hosts of the inventory,"
        " or `localhost`, the controller.",
    ),
    "wheels_ops_python": Variable(
        "str",
        "{wheels_ops_venv}/bin/python",
        "Python interpreter that runs the modules of this collection on the host.",
    ),
    "wheels_ops_recover_deploys": Variable(
        "bool",
        False,
        "Let `recover` begin a deployment where only that helps: speech, CORS, files that are missing or changed. It"
        " rolls itself back. Without, the deployment is named.",
    ),
    "wheels_ops_recovery_policy": Variable(
        "dict",
        {},
        "How a recovery behaves, as data: cool-downs, budgets, which remedy for which check, what waits for a person."
        " See [recovery.md](recovery.md).",
    ),
    "wheels_ops_redis_unit": Variable("str", "redis-server", "Unit of Redis, as the service manager calls it."),
    "wheels_ops_redis_url": Variable(
        "str",
        "redis://127.0.0.1:6379/0",
        "URL of the Redis of cache and broker (secret if it has a password), or a reference such as"
        " `file:///etc/api.env#REDIS_URL`.",
    ),
    "wheels_ops_report_dir": Variable(
        "str",
        "reports/{inventory_hostname}",
        "Directory on the controller for the reports of this host. A relative one is below the directory in which"
        " `ansible-playbook` was started.",
    ),
    "wheels_ops_runbook_url": Variable(
        "str",
        "",
        "Where the runbooks are published, with `{name}` for the page, such as"
        " `https://docs.example.com/runbooks/{name}.html`. Alerts, reports and the dashboard link to it.",
    ),
    "wheels_ops_restore_command": Variable(
        "list of str",
        [],
        "Command, word by word, that puts a drained host back, once its checks pass, and ends when the proxy has it.",
    ),
    "wheels_ops_schedule_file": Variable("str", "", "Schedule file of Celery beat. Empty: it is not checked."),
    "wheels_ops_scope": Variable(
        "str", "host", "`host`, or `services` on a machine that also serves others: only our services are graded."
    ),
    "wheels_ops_serial": Variable(
        "raw",
        1,
        "Hosts at a time, as the play keyword `serial` takes it; the first batch is the canary. The same for all hosts.",
    ),
    "wheels_ops_service_manager": Variable(
        "str",
        "auto",
        "`systemd`, `systemd_user`, `supervisor`, `compose` or `auto`. `auto` takes supervisord where"
        " `wheels_ops_supervisor_socket` is set.",
    ),
    "wheels_ops_services": Variable(
        "list of dict",
        REPORT_SERVICES,
        "The services in dependency order, as the module `wheels.ops.service_restart` takes them."
        " Set it where your units have other names.",
    ),
    "wheels_ops_socket_activation": Variable(
        "bool", False, "Let systemd hold the backend's socket, so that a restart fails no request."
    ),
    "wheels_ops_state_dir": Variable(
        "str", "/var/lib/wheels-ops", "State directory: lock, journal, original files, history."
    ),
    "wheels_ops_supervisor_password": Variable(
        "str", "", "Password for `wheels_ops_supervisor_username`. Keep it in a vault."
    ),
    "wheels_ops_supervisor_socket": Variable(
        "str", "", "Unix socket of supervisord. Empty: found where the system keeps it."
    ),
    "wheels_ops_supervisor_username": Variable(
        "str", "", "User of supervisord's `[unix_http_server]`, where it asks for one."
    ),
    "wheels_ops_temporary_directories": Variable(
        "list of str", [], "The application's own temporary directories, from which old files are deleted."
    ),
    "wheels_ops_thresholds": Variable(
        "dict of dict",
        {},
        "Limits by measure, such as `{cpu: {warning: 80}}`. What is not named keeps the limit of the incident report."
        " Health check, recovery, programs and backend all use them.",
    ),
    "wheels_ops_token_file": Variable(
        "str", "/etc/wheels-ops/ops-token", "File with the ops tokens of the health API, one per line."
    ),
    "wheels_ops_venv": Variable(
        "str", "/opt/wheels-ops/venv", "Virtual environment for the modules of this collection, made by `prepare`."
    ),
    "wheels_ops_verify_in_check_mode": Variable(
        "bool", False, "Import the patched application in check mode as well, which executes its code."
    ),
    "wheels_ops_websocket_dead_peer_within": Variable(
        "float", 0, "Seconds within which a dead WebSocket peer must be disconnected. 0: not checked."
    ),
    "wheels_ops_websocket_heartbeat_within": Variable(
        "float", 0, "Seconds within which a WebSocket heartbeat must arrive. 0: not checked."
    ),
    "wheels_ops_websocket_token": Variable(
        "str", "", "Token (JWT) with which the check opens the WebSocket (secret). Empty: the refusal is reported."
    ),
    "wheels_ops_wheelhouse": Variable(
        "str",
        "",
        "Directory on the controller with the wheels for hosts without a package index, made by `make wheelhouse`."
        " Empty: the hosts have an index.",
    ),
}
#: What is of a whole run: keywords of plays, which Ansible evaluates without any host.
RUN_WIDE: t.FrozenSet[str] = frozenset({"wheels_ops_hosts", "wheels_ops_serial"})
#: Paths on the controller. Ansible resolves a relative one against the playbook, which lies in the installed collection.
ON_CONTROLLER: t.FrozenSet[str] = frozenset({"wheels_ops_report_dir", "wheels_ops_wheelhouse"})
#: Variables that a renamed role or variable still reads, by the name that replaced each.
FORMER_PREFIXES: t.Dict[str, str] = {"recovery_": "host_cleanup_"}
