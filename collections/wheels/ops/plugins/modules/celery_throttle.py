#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: celery_throttle
short_description: Temporarily reduce the rate of periodic Celery tasks
version_added: 1.0.0
description:
  - Writes the signal that the patched backend's Celery beat and workers obey. Periodic tasks of the chosen classes come
    2, 4 or 8 times as
    rarely. At level 3 the workers also leave the queues of these classes alone.
  - Nothing is lost. What waits stays in its queue and is taken up again.
  - The throttle ends by itself after O(expires_s), whatever happens to whoever set it.
  - While an operator's throttle is in force, the backend's own measurement does not change it.
options:
  redis_url:
    description: The broker, for example V(redis://127.0.0.1:6379/0). A password in it is not shown.
    type: str
    required: true
  state:
    description:
      - V(throttled) slows down.
      - V(normal) ends a throttle at once, an automatic one as well; that one may come back while the load lasts.
    type: str
    choices: [throttled, normal]
    default: throttled
  level:
    description: 1, 2 or 3, for 2, 4 or 8 times as rarely.
    type: int
    default: 2
  classes:
    description:
      - What is slowed down. The digest is never more than half an hour late, the others never more than three hours.
      - Email, notifications, maintenance and unrouted tasks are refused, as users wait for them.
    type: list
    elements: str
    default: [cleanup, analytics, digest]
  expires_s:
    description: Seconds after which it ends by itself, 10 to 86400. It is renewed by a run that finds less than half of
      it left.
    type: int
    default: 900
  reason:
    description: One line for the log of beat, at most 200 characters.
    type: str
    default: by an operator
  wait_timeout:
    description: Seconds to wait until beat shows that it obeys, 0 to 300. Where beat shows no heartbeat, nothing is
      waited for.
    type: float
    default: 10
  timeout:
    description: Seconds for one answer of Redis, 0.1 to 300.
    type: float
    default: 5
requirements:
  - redis (Python library)
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - A throttle that is in force as wanted is renewed, which is a change, when less than half of O(expires_s) is
        left.
"""

EXAMPLES = r"""
- name: Let cleanup and analytics wait while the machine is busy
  wheels.ops.celery_throttle:
    redis_url: redis://127.0.0.1:6379/0
    level: 2
    classes: [cleanup, analytics]
    expires_s: 600
    reason: import of the new map data

- name: Full rate again
  wheels.ops.celery_throttle:
    redis_url: redis://127.0.0.1:6379/0
    state: normal
"""

RETURN = r"""
before:
  description: C(level), C(factor), C(classes), C(source), C(reason), C(expires_s), and C(queued), the waiting tasks by
    queue.
  returned: success
  type: dict
  sample: {level: 0, factor: 1, classes: [], source: "", reason: "", expires_s: 0, queued: {unacked: 0}}
after:
  description: The same afterwards; in check mode what is to be expected.
  returned: success
  type: dict
actions:
  description: The one thing that was done.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: V(throttle) or V(restore).
      type: str
    target:
      description: The key in Redis.
      type: str
    changed:
      description: Whether it was written.
      type: bool
    factor:
      description: How many times as rarely the classes come.
      type: int
applied:
  description: Whether beat shows that it obeys; none where beat shows no heartbeat, and in check mode.
  returned: success
  type: bool
diff:
  description: The throttle before and after.
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
from ansible_collections.wheels.ops.plugins.module_utils.remedies import celery_throttle


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            # With no_log errors could not say which Redis is meant; messages show it without its password.
            "redis_url": {"type": "str", "required": True, "no_log": False},
            "state": {"type": "str", "choices": ["throttled", "normal"], "default": "throttled"},
            "level": {"type": "int", "default": 2},
            "classes": {"type": "list", "elements": "str", "default": ["cleanup", "analytics", "digest"]},
            "expires_s": {"type": "int", "default": 900},
            "reason": {"type": "str", "default": "by an operator"},
            "wait_timeout": {"type": "float", "default": 10},
            "timeout": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    run(module, lambda: celery_throttle.run(check_mode=module.check_mode, **module.params))


if __name__ == "__main__":
    main()
