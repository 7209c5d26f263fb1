# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The option ``services`` of every module that takes some; kept in step with ``module_utils/services/arguments.py``."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  services:
    description:
      - The services, with what they depend on and when each counts as ready. Those that do not depend on each other
        keep this order.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What the service is called here.
        type: str
        required: true
      unit:
        description:
          - What its manager calls it (V(redis-server), V(group:program)); the name where it is not given.
          - A unit that only stands for others leads to these, as Debian's V(postgresql) does to
            C(postgresql@VERSION-CLUSTER).
          - The name of a group of supervisord, also that of a program with C(numprocs), stands for all programs in it.
        type: str
      depends_on:
        description: Services of this list that have to be healthy before it starts, and whose restart restarts it.
        type: list
        elements: str
        default: []
      watch_files:
        description: Files that it reads when it starts, absolute. It is stale where one of them is newer than its
          process.
        type: list
        elements: path
        default: []
      gate:
        description: When it counts as ready.
        type: dict
        default: {}
        suboptions:
          type:
            description:
              - V(state), what its manager says, is enough for a service without an interface.
              - V(tcp) connects to O(services[].gate.host) and O(services[].gate.port).
              - V(http) asks O(services[].gate.url) and looks at status and body.
              - V(redis) wants a PONG from O(services[].gate.url), and the data loaded.
              - V(celery) wants an answer of the service's own worker by way of the broker O(services[].gate.url).
              - V(beat) wants exactly one beat, and its schedule written. A beat of another application, of another
                broker, or, where a broker
                is not known, in another directory is of another project and does not count.
              - V(redis), V(celery) and V(beat) know Redis alone. Another broker (RabbitMQ, for example) is refused by
                its name.
              - V(none) does not wait.
            type: str
            choices: [none, state, tcp, http, redis, celery, beat]
            default: state
          url:
            description:
              - For V(http), V(redis) and V(celery), what is asked.
              - For V(beat), the broker, which tells beats of several installations apart. That of the services it
                depends on where it is not given.
              - A password in it is not shown.
            type: str
          host:
            description: For V(tcp).
            type: str
            default: 127.0.0.1
          port:
            description: For V(tcp), from 1 to 65535.
            type: int
          status:
            description: The HTTP codes that count as healthy.
            type: list
            elements: int
            default: [200]
          body_regex:
            description: A regular expression that the HTTP body has to match somewhere.
            type: str
          body_json:
            description: Values that the HTTP body has to hold, by dotted path, for example C(checks.database) with
              V(ok).
            type: dict
            default: {}
          headers:
            description: Headers of the HTTP request. Their values are not shown.
            type: dict
            default: {}
          validate_certs:
            description: Whether the certificate has to be valid.
            type: bool
            default: true
          timeout:
            description: Seconds for one probe, above 0 and up to 3600.
            type: float
            default: 5
          verify_owner:
            description:
              - Whether the answer has to come from a process of the service. Needs root, or the user of the service.
              - Turn it off only where the answer comes through a proxy or from another host.
            type: bool
            default: true
          node:
            description: For V(celery), a regular expression for the names of the nodes that count.
            type: str
          app:
            description: For V(beat), the application as in C(celery -A), where beats of several applications share a
              host.
            type: str
          schedule_file:
            description: For V(beat), its schedule file (C(celery beat -s)), which it writes when it starts.
            type: path
          min_healthy_time:
            description: Seconds that it has to hold for this service, instead of those of the run, 0 to 3600.
            type: float
          healthy_deadline:
            description: Seconds that this service has for it, instead of those of the run, above 0 and up to 3600.
            type: float
"""

    #: For a module that does nothing without them.
    GRAPH: str = DOCUMENTATION.replace("default: []", "required: true", 1)
