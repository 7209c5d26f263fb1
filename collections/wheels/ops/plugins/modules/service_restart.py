#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: service_restart
short_description: Restart services in dependency order with readiness checks
version_added: 1.0.0
description:
  - Restarts a graph of services, dependencies first, each one once, and goes on to the next only when the new process
    of the last one does its work.
  - A gate has to hold without a break for O(min_healthy_time), and it has to be answered by the new process. A port
    that a stale process
    still holds, a status 200 from the wrong process, and a service that dies after its start do not pass.
  - Celery workers and beat are stopped before the Redis below them and started after it. What waits in Redis is counted
    before and after, Redis
    is brought to disk before it is stopped, and a restart that would lose tasks is refused. In every database of the
    server each list and each
    stream counts, whoever uses it, as do unfinished deliveries of Celery (C(unacked), under any C(global_keyprefix)),
    messages of dramatiq, and the
    sorted sets in which arq, rq, Sidekiq and huey keep jobs. Other sorted sets, hashes and strings do not.
  - A Redis whose configuration file says something else than it runs with (C(appendonly), C(dir), C(dbfilename)), so
    that its next start would not
    read what it keeps, is not restarted while anything waits in it. Its dump is set aside before a restart, as
    C(dump.rdb.wheels-ops-TIME), three at
    most.
  - A Celery worker that a signal has stopped (SIGSTOP) is continued before it is ended, as Redis may have given it a
    task that it has not
    read. What waits in its broker is counted before and after.
  - A second beat on the host is refused, as it would send every periodic task twice.
  - Restarts are counted over runs in C(restarts.jsonl) of the state directory, which bounds what an automatic recovery
    can do.
  - systemd counts restarts by hand too, and leaves a service down at its start limit. The module waits before it would
    reach it.
options:
  state:
    description:
      - With V(restarted), everything chosen is restarted, or started where it does not run.
      - With V(started), only what does not run is started. A oneshot unit that has ended successfully, and a service
        whose socket or timer
        will start it, are as they should be.
    type: str
    choices: [restarted, started]
    default: restarted
  only:
    description: Names of services to look at; all where it is empty. What depends on a restarted one is restarted with
      it.
    type: list
    elements: str
    default: []
  only_if:
    description:
      - Restart a service only for one of these reasons. Without any, everything chosen is restarted.
      - V(failed), its manager gave up; V(stopped), it does not run; V(stale), a file of C(watch_files) is newer than
        its process;
        or of its unit was changed since systemd read it;
        V(unhealthy), its gate does not hold. A Celery worker that only does not answer is not restarted while a
        delivery is unfinished, while it
        uses a CPU, or while its pool V(solo) is away from the queue; one whose C(worker_enable_remote_control) is off
        but that takes tasks is healthy.
      - A worker with the pool V(solo) that is at a task is healthy for as long as a task may take, by C(--time-limit)
        on its command line or
        else 3600 seconds. Beyond that it is named, and still not restarted.
    type: list
    elements: str
    choices: [failed, stopped, stale, unhealthy]
    default: []
  with_dependents:
    description: Whether what depends on a restarted service is restarted too.
    type: bool
    default: true
  daemon_reload:
    description:
      - Whether systemd reads its unit files anew (C(systemctl daemon-reload)) before a service is restarted whose unit
        was changed on disk
        (C(NeedDaemonReload)). Nothing else is restarted by that.
      - With V(false) such a restart is refused, as the service would come up by its old definition.
    type: bool
    default: true
    version_added: 1.1.0
  wait_timeout:
    description: Seconds that the manager has to stop or start one service, 1 to 3600. A stop that takes longer is
      followed to its end,
      for as long as the unit allows it (C(TimeoutStopSec), C(stopwaitsecs)), and the start after it has all of these
      seconds.
    type: float
    default: 120
  wait_sleep:
    description: Seconds between two probes of a gate, 0.01 to 60.
    type: float
    default: 0.5
  min_healthy_time:
    description: Seconds that a gate has to hold without a break, 0 to 600. A process that dies 1.5 seconds after its
      start passes with less than 2.
    type: float
    default: 3
  healthy_deadline:
    description: Seconds from the start of a service until its gate has held for O(min_healthy_time), 1 to 3600.
    type: float
    default: 60
  max_restarts:
    description: Restarts of one service within O(window) over all runs; 0 for no limit, up to 1000.
    type: int
    default: 3
  window:
    description: Seconds that O(max_restarts) counts, 1 second to 30 days.
    type: float
    default: 3600
  cooldown:
    description: Seconds between two restarts of one service over all runs; 0 for none, up to one day.
    type: float
    default: 0
  allow_task_loss:
    description: Restart a Redis although tasks that wait in it would be lost, or cannot be counted because it does not
      answer.
    type: bool
    default: false
  queues:
    description:
      - Celery queues, besides those that the broker itself knows. Every list is counted; in these and C(unacked) a task
        may move about, so that their
        sum must not be less after the restart.
    type: list
    elements: str
    default: [celery, default, email, maintenance, analytics, cleanup, notifications]
  log_lines:
    description: Last lines of a failed service in the result, 0 to 1000.
    type: int
    default: 20
  reason:
    description: Why, for C(restarts.jsonl).
    type: str
  state_dir:
    description: Where C(restarts.jsonl) lies. The environment variable E(WHEELS_OPS_STATE_DIR), else
      C(/var/lib/wheels-ops), where it is not given.
    type: path
notes:
  - On the Redis that is restarted it needs C(+ping +info +config|get +select +scan +hscan +llen +hlen +xlen +zcard
    +smembers +time +bgsave +multi +exec) and
    all keys (C(~*)); for the gate V(celery) also C(+sadd +srem +publish +blpop +del +client|list) and all channels
    (C(&*)). What is missing is named.
requirements:
  - redis (Python library), for the gates V(redis) and V(celery)
  - requests, for the gate V(http)
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes
  - wheels.ops.services.graph
  - wheels.ops.service_manager
attributes:
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: Full with O(state=started) and with O(only_if). Without them every run restarts, as is asked for.
seealso:
  - module: wheels.ops.celery_throttle
"""

EXAMPLES = r"""
- name: Restart the backend in order
  wheels.ops.service_restart:
    services:
      - name: redis
        unit: redis-server
        gate: {type: redis, url: redis://127.0.0.1:6379/0}
      - name: pam-backend
        depends_on: [redis]
        gate: {type: http, url: http://127.0.0.1:8000/readyz, body_json: {status: pass}}
      - name: celery-worker
        depends_on: [redis]
        gate: {type: celery, url: redis://127.0.0.1:6379/0}
      - name: celery-beat
        depends_on: [celery-worker]
        gate: {type: beat}
  become: true

- name: Restart what still runs on older files, and what depends on it
  wheels.ops.service_restart:
    services:
      - name: pam-backend
        watch_files: [/opt/pam/backend/app/main.py, /etc/pam/backend.env]
        gate: {type: http, url: http://127.0.0.1:8000/readyz}
    only_if: [failed, stopped, stale]
  become: true
"""

RETURN = r"""
before:
  description: What the manager said of every service before, by name.
  returned: always
  type: dict
  sample: {redis: {unit: redis-server, running: true, state: active/running, pid: 812, instance: 3f0c..., uptime_s:
    86400.0}}
after:
  description: The same afterwards. In check mode a restarted service has the instance V((new\)).
  returned: always
  type: dict
actions:
  description: What was done, in order. RV(actions[].action) is V(daemon_reload), V(continue), V(pause), V(restart),
    V(start) or V(resume).
  returned: always
  type: list
  elements: dict
  contains:
    action:
      description: The verb.
      type: str
    target:
      description: The name of the service.
      type: str
    changed:
      description: Whether something was changed.
      type: bool
    reason:
      description: Why it was acted on.
      type: str
    ms_to_ready:
      description: Milliseconds until its gate held for the first time; null in check mode.
      type: float
    gate_attempts:
      description: Probes of its gate; null in check mode.
      type: int
    unit:
      description: What its manager calls it.
      type: str
    gate:
      description: The type of its gate.
      type: str
    answer:
      description: What the gate was answered last.
      type: dict
    duration_ms:
      description: Milliseconds for all of it; null in check mode.
      type: float
    instance_before:
      description: The instance that was replaced.
      type: str
    instance_after:
      description: The instance that answers now; null in check mode.
      type: str
    propagated:
      description: Whether systemd had restarted it by itself, with a service of this list (C(PartOf), C(Requires)), so
        that it was not restarted again but only its gate was waited for; null in check mode.
      type: bool
    persisted:
      description:
        - For a Redis, how it was brought to disk (C(method)), the C(dump_copy) that was set aside or why it was
          C(not_copied), and the
          C(differences) between what it runs with and its configuration file, or why that was C(not_compared).
      type: dict
order:
  description: The names of the services in the order in which they were acted on.
  returned: always
  type: list
  elements: str
queued_tasks:
  description:
    - For every Redis that was restarted, and every worker that was continued, what waits by queue before and after; C(unacked) are those that a worker had
      taken. What lies in another
      database than that of the gate has its number behind its name.
  returned: always
  type: dict
  sample: {redis: {before: {celery: 12, unacked: 1}, after: {celery: 12, unacked: 1}}}
manager:
  description: V(systemd), V(supervisor) or V(compose).
  returned: always
  type: str
diff:
  description: State and instance of every service, before and after.
  returned: always
  type: list
  elements: dict
msg:
  description: One sentence for people.
  returned: always
  type: str
last_state:
  description: The last state of the service that failed.
  returned: failure
  type: dict
last_probe:
  description: What its gate saw last, and why that was not enough.
  returned: failure
  type: dict
log:
  description: Its last lines.
  returned: failure
  type: list
  elements: str
blocked_reason:
  description: Why a restart was refused.
  returned: failure
  type: str
resumed:
  description: Services that had been paused and were started again after the failure.
  returned: failure
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.remedies import service_restart
from ansible_collections.wheels.ops.plugins.module_utils.services import arguments
from ansible_collections.wheels.ops.plugins.module_utils.services.manager import from_params
from ansible_collections.wheels.ops.plugins.module_utils.services.model import parse_services


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "services": {**arguments.SERVICES, "required": True},
            "state": {"type": "str", "choices": ["restarted", "started"], "default": "restarted"},
            "only": {"type": "list", "elements": "str", "default": []},
            "only_if": {
                "type": "list",
                "elements": "str",
                "choices": ["failed", "stopped", "stale", "unhealthy"],
                "default": [],
            },
            "with_dependents": {"type": "bool", "default": True},
            "daemon_reload": {"type": "bool", "default": True},
            **arguments.MANAGER,
            "wait_timeout": {"type": "float", "default": 120},
            "wait_sleep": {"type": "float", "default": 0.5},
            "min_healthy_time": {"type": "float", "default": 3},
            "healthy_deadline": {"type": "float", "default": 60},
            "max_restarts": {"type": "int", "default": 3},
            "window": {"type": "float", "default": 3600},
            "cooldown": {"type": "float", "default": 0},
            "allow_task_loss": {"type": "bool", "default": False},
            "queues": {
                "type": "list",
                "elements": "str",
                "default": ["celery", "default", "email", "maintenance", "analytics", "cleanup", "notifications"],
            },
            "log_lines": {"type": "int", "default": 20},
            "reason": {"type": "str"},
            "state_dir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    p = module.params
    run(
        module,
        lambda: service_restart.run(
            parse_services(p["services"]),
            from_params(p),
            service_restart.options_of(p),
            check_mode=module.check_mode,
        ),
    )


if __name__ == "__main__":
    main()
