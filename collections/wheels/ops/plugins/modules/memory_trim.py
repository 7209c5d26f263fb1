#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: memory_trim
short_description: Reduce memory usage step by step
version_added: 1.0.0
description:
  - Measures the memory of the host (C(MemAvailable); the cache of ZFS is available down to C(c_min), the pool of huge
    pages left out), of the container
    around it, and of each service against its limit and that of its cgroup (v1 and v2, the lower of C(memory.max) and
    C(memory.high), without clean file
    cache). Where a share is above the warning it climbs the ladder, and stops as soon as O(target) is reached.
  - Above V(warning) the application is asked to trim itself, where C(/proc/PID/smaps) says that it is worth it, and
    Redis to purge its allocator.
  - Above V(critical) idle children of Celery workers are replaced by their own remote control, and a cgroup v2 gives up
    file cache.
  - Above V(emergency) the largest worker of a gunicorn or a uvicorn with several workers is ended gracefully, and
    replaced by its server.
  - Above O(restart_above) the service is restarted behind its gate, with O(allow_restart) only.
  - The host, a container or a cgroup at a percentage is no reason to end a process that serves. The last two steps are
    taken for them only where the
    kernel reports pressure too, that is, where all tasks waited for memory for a tenth of the last 10 seconds (PSI),
    or, on a kernel without PSI, where
    limits are met within 2 seconds (C(memory.events), C(memory.failcnt), C(allocstall)). A limit of O(memory_limits_mb)
    is a budget that somebody gave,
    of memory that the processes themselves hold; it counts as it is.
  - A step that replaces processes and gave nothing back is not taken again until the service has grown by O(min_gain)
    and a twentieth. A service that
    uses as much after its restart as before needs a higher limit, which is said; one that has grown back within ten
    minutes is not restarted either.
    To restart it all the same there is M(wheels.ops.service_restart).
  - Each step is measured. It never drops the page cache, never kills, and puts no code into a running process.
options:
  scope:
    description: V(host) measures the host too, V(services) only services, for a machine that serves others.
    type: str
    choices: [host, services]
    default: host
  memory_limits_mb:
    description: What each service may use, in MiB, above 0, by its name.
    type: dict
    default: {}
  thresholds:
    description: The tiers C(warning), C(critical) and C(emergency) in percent, rising, 0 to 100. What is not given is
      65, 75, 85.
    type: dict
    default: {}
  restart_above:
    description: Restart above so many percent, 1 to 100 and not below the other tiers, if cleaning up was not enough
      and O(allow_restart) is given.
    type: float
    default: 90
  target:
    description: Stop at so many percent, not above the warning. By default at the warning.
    type: float
  actions:
    description: The steps that may be taken. Their order is fixed.
    type: list
    elements: str
    choices: [application, redis, celery, reclaim, recycle, restart]
    default: [application, redis, celery, reclaim, recycle, restart]
  base_url:
    description: The application that carries our health API.
    type: str
    default: ""
  application:
    description: The service that O(base_url) belongs to. By default the first with a gate of type V(http).
    type: str
    default: ""
  token:
    description: The ops token of the application.
    type: str
  token_file:
    description: A file on the host whose first line that is no comment is the ops token. It has to be there in check
      mode too.
    type: path
    default: ""
  redis_url:
    description: The Redis to purge, and the broker of workers whose gate names none.
    type: str
    default: ""
  allow_restart:
    description: Allow the last step.
    type: bool
    default: false
  protect:
    description:
      - Names of services and programs that are never recycled, reclaimed from or restarted, beside V(redis),
        V(redis-server), V(postgres),
        V(postgresql), V(sshd), V(systemd), V(dockerd), V(containerd) and V(supervisord).
    type: list
    elements: str
    default: []
  min_gain:
    description: A step that gives back less was not worth it, and the module did not change anything by it. Bytes, or
      with a unit such as V(32M).
    type: str
    default: 32M
  timeout:
    description: Seconds for one step, 1 to 600.
    type: float
    default: 30
  verify_after:
    description: Measure once more after so many seconds, up to 300, and give RV(rebound_percent).
    type: float
    default: 0
  max_restarts:
    description: Restarts of one service within an hour, over all runs, up to 1000. 0 for no bound.
    type: int
    default: 3
  state_dir:
    description: Where restarts are counted (C(restarts.jsonl)), and what each step gave back last (C(memory.json)).
    type: path
    default: ""
notes:
  - Run it as root, or as the user of the services. Other users' processes cannot be measured.
requirements:
  - redis (Python library), for V(redis) and V(celery) in O(actions)
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes
  - wheels.ops.services
  - wheels.ops.service_manager
attributes:
  diff_mode:
    support: full
seealso:
  - module: wheels.ops.service_restart
  - module: wheels.ops.cache_purge
"""

EXAMPLES = r"""
- name: Bring the backend below 65 % of what it may use
  wheels.ops.memory_trim:
    services:
      - name: pam-backend
        gate: {type: http, url: "http://127.0.0.1:8000/health"}
    memory_limits_mb: {pam-backend: 512}
    scope: services
    base_url: http://127.0.0.1:8000
    token_file: /etc/wheels-ops/ops-token
    allow_restart: true
"""

RETURN = r"""
before:
  description: C(subjects) with percent and bytes, C(stalls) of the host as the kernel counts them (PSI), and the
    C(tier) of the worst.
  returned: success
  type: dict
  sample: {subjects: {pam-backend: {percent: 88.2, used_bytes: 397642956, limit_bytes: 450887680}}, stalls: {some_avg10:
    0.0}, tier: emergency}
after:
  description: The same afterwards, measured; in check mode what is to be expected at best.
  returned: success
  type: dict
actions:
  description: The steps, in the order in which they were tried.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: V(application), V(redis), V(celery), V(reclaim), V(recycle) or V(restart).
      type: str
    target:
      description: The service.
      type: str
    subject:
      description: Whose share of memory was too large.
      type: str
    changed:
      description: Whether it gave back at least O(min_gain), or replaced a process.
      type: bool
    predicted_bytes:
      description: What it could give back at most, as far as that can be known beforehand.
      type: int
    bytes_freed:
      description: What the subject uses less afterwards.
      type: int
    percent_before:
      description: The subject's percentage before.
      type: float
    percent_after:
      description: The subject's percentage afterwards.
      type: float
    effective:
      description: Whether RV(actions[].bytes_freed) is at least O(min_gain).
      type: bool
    skipped:
      description: Why it was not done, or not to the end.
      type: str
    cache_bytes_freed:
      description: For V(reclaim), file cache that was given up. It is no gain in RV(actions[].bytes_freed).
      type: int
    replaced:
      description: For V(celery), the processes that were replaced.
      type: list
      elements: int
    needed_bytes:
      description: For a V(restart) that would not help, what was used after the last one.
      type: int
    restarted:
      description: For V(restart), the services that were restarted.
      type: list
      elements: str
    reported:
      description: For V(application), what it says of its own trim.
      type: dict
    rss_before:
      description: For V(redis), its resident bytes before.
      type: int
    rss_after:
      description: For V(redis), its resident bytes afterwards.
      type: int
    anonymous_bytes:
      description: For V(reclaim), anonymous memory that went with it.
      type: int
    duration_ms:
      description: How long the step took.
      type: float
bytes_freed:
  description: What all services use less.
  returned: success
  type: int
missed:
  description: What is still above the target.
  returned: success
  type: list
  elements: str
rebound_percent:
  description: Percentages after O(verify_after) seconds.
  returned: success
  type: dict
duration_ms:
  description: How long it took.
  returned: success
  type: float
diff:
  description: Percentages before and after.
  returned: success
  type: list
  elements: dict
msg:
  description: One sentence for people.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.remedies.memory import trim
from ansible_collections.wheels.ops.plugins.module_utils.services import arguments

ACTIONS = ["application", "redis", "celery", "reclaim", "recycle", "restart"]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "services": {**arguments.SERVICES, "default": []},
            **arguments.MANAGER,
            "scope": {"type": "str", "choices": ["host", "services"], "default": "host"},
            "memory_limits_mb": {"type": "dict", "default": {}},
            "thresholds": {"type": "dict", "default": {}},
            "restart_above": {"type": "float", "default": 90},
            "target": {"type": "float"},
            "actions": {"type": "list", "elements": "str", "choices": ACTIONS, "default": ACTIONS},
            "base_url": {"type": "str", "default": ""},
            "application": {"type": "str", "default": ""},
            "token": {"type": "str", "no_log": True},
            "token_file": {"type": "path", "default": "", "no_log": False},
            "redis_url": {"type": "str", "default": "", "no_log": False},
            "allow_restart": {"type": "bool", "default": False},
            "protect": {"type": "list", "elements": "str", "default": []},
            "min_gain": {"type": "str", "default": "32M"},
            "timeout": {"type": "float", "default": 30},
            "verify_after": {"type": "float", "default": 0},
            "max_restarts": {"type": "int", "default": 3},
            "state_dir": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    run(module, lambda: trim.run_with(module.params, check_mode=module.check_mode))


if __name__ == "__main__":
    main()
