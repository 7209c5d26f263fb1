#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: cache_purge
short_description: Delete cache keys from a shared Redis
version_added: 1.0.0
description:
  - Removes keys under the prefixes of the cache, by C(SCAN) and C(UNLINK) in slices whose size follows the time that
    the last one took.
    C(KEYS), C(FLUSHDB) and C(DEL) are never sent.
  - On a cluster every primary is gone through, by the node that O(url) names; user and password are the same for all.
  - Each key is looked at and removed in one atomic step. A key that was refreshed meanwhile stays.
  - Never touches what Celery, the rate limiter and the security log keep in the same database, nor a queue that the
    broker knows. A protected
    pattern has to be named in O(unprotect) to be reached.
options:
  url:
    description: The Redis, for example V(redis://127.0.0.1:6379/0). A password in it is not shown.
    type: str
    required: true
  prefixes:
    description: Beginnings of keys, as they stand.
    type: list
    elements: str
    default: []
  patterns:
    description: Redis globs. Each has to begin with a letter of its own, not with a wildcard.
    type: list
    elements: str
    default: []
  idle_time:
    description: Only keys that were neither read nor written for so many seconds, up to ten years. Not with an LFU
      eviction policy.
    type: int
    default: 0
  missing_ttl:
    description: Only keys that never expire by themselves.
    type: bool
    default: false
  types:
    description: Only keys of these types. Cached values are strings; queues are lists.
    type: list
    elements: str
    choices: [string, list, set, zset, hash, stream]
    default: [string]
  protect:
    description: Further Redis globs that are never touched.
    type: list
    elements: str
    default: []
  unprotect:
    description:
      - Protected patterns, exactly as they stand, that may be reached in this run.
      - These are protected. C(_kombu.*), C(unacked*), C(celery*), C(_celery*), C(celery-task-meta-*),
        C(celery-taskset-meta-*),
        C(*.reply.celery.pidbox), priority queues of kombu, C(redbeat*), C(email), C(default), C(maintenance),
        C(analytics), C(cleanup),
        C(notifications), C(rate_limit:*), C(security_event:*), C(threats:*), C(severity_count:*), C(blocked_ip:*),
        C(blocked_user:*),
        C(sess:*), C(session:*).
      - Results of Celery match C(celery*) and C(celery-task-meta-*); name both to reach them.
    type: list
    elements: str
    default: []
  max_keys:
    description: At most so many keys in one run; 0 for no bound.
    type: int
    default: 0
  max_seconds:
    description: Stop after so many seconds, up to one day; 0 for no bound.
    type: float
    default: 300
  slice_ms:
    description: What one step may take, in milliseconds, 0.5 to 100. Nobody waits longer for Redis because of us.
    type: float
    default: 5
  timeout:
    description: Seconds for one answer of Redis, 0.1 to 300.
    type: float
    default: 5
requirements:
  - redis (Python library)
  - Redis 5 or newer
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
seealso:
  - module: wheels.ops.memory_trim
"""

EXAMPLES = r"""
- name: Remove cached answers that nobody asked for during a day
  wheels.ops.cache_purge:
    url: redis://127.0.0.1:6379/0
    prefixes: ["response:", "web_search:", "script_analysis:"]
    idle_time: 86400

- name: Remove cached profiles that would stay for ever
  wheels.ops.cache_purge:
    url: redis://127.0.0.1:6379/0
    prefixes: ["user_profile:"]
    missing_ttl: true

- name: Remove results of tasks that nobody fetched for a week
  wheels.ops.cache_purge:
    url: redis://127.0.0.1:6379/0
    prefixes: [celery-task-meta-]
    unprotect: ["celery*", "celery-task-meta-*"]
    idle_time: 604800
"""

RETURN = r"""
before:
  description: C(key_count) in the database and C(used_memory_bytes) of the server before.
  returned: success
  type: dict
  sample: {key_count: 100000, used_memory_bytes: 73400320}
after:
  description: The same afterwards, measured; in check mode what is to be expected.
  returned: success
  type: dict
actions:
  description: One entry for every prefix and pattern.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: Always V(unlink).
      type: str
    target:
      description: The pattern.
      type: str
    changed:
      description: Whether any key was removed.
      type: bool
    key_count:
      description: Keys removed, or that would be.
      type: int
    bytes_freed:
      description: Their memory as C(MEMORY USAGE) counts it.
      type: int
key_count:
  description: All keys removed, or that would be.
  returned: success
  type: int
bytes_freed:
  description: Their memory in bytes.
  returned: success
  type: int
left:
  description: How many matching keys were left, as they are V(protected), of another V(type), V(expires) by itself, or
    V(in_use).
  returned: success
  type: dict
complete:
  description: Whether everything was looked at.
  returned: success
  type: bool
longest_slice_ms:
  description: The longest single step in milliseconds.
  returned: success
  type: float
slices:
  description: How many slices it took.
  returned: success
  type: int
scanned:
  description: How many slots were asked for.
  returned: success
  type: int
duration_ms:
  description: How long it took.
  returned: success
  type: float
diff:
  description: The number of keys before and after.
  returned: success
  type: list
  elements: dict
msg:
  description: One sentence for people.
  returned: always
  type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.remedies import cache_purge


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            # With no_log a url would blank parts of every key in the result; messages show it without its password.
            "url": {"type": "str", "required": True, "no_log": False},
            "prefixes": {"type": "list", "elements": "str", "default": []},
            "patterns": {"type": "list", "elements": "str", "default": []},
            "idle_time": {"type": "int", "default": 0},
            "missing_ttl": {"type": "bool", "default": False},
            "types": {
                "type": "list",
                "elements": "str",
                "choices": ["string", "list", "set", "zset", "hash", "stream"],
                "default": ["string"],
            },
            "protect": {"type": "list", "elements": "str", "default": []},
            "unprotect": {"type": "list", "elements": "str", "default": []},
            "max_keys": {"type": "int", "default": 0, "no_log": False},
            "max_seconds": {"type": "float", "default": 300},
            "slice_ms": {"type": "float", "default": 5},
            "timeout": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    options: t.Dict[str, t.Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in module.params.items() if key != "url"
    }
    run(
        module,
        lambda: cache_purge.run(module.params["url"], cache_purge.Options(**options), check_mode=module.check_mode),
    )


if __name__ == "__main__":
    main()
