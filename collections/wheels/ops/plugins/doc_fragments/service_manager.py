# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The options of every module that talks to the service manager; kept in step with
``module_utils/services/arguments.py``.
"""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  service_manager:
    description:
      - What runs the services. V(auto) takes supervisord where O(supervisor_socket) is given, else systemd,
        else any supervisord, else Compose.
      - V(systemd_user) is the systemd of the user who runs the task (C(systemctl --user)); give it with
        C(become_user). It runs without a login
        where lingering is on (C(loginctl enable-linger USER)).
      - V(compose) has the containers of C(docker compose) or C(podman compose) on this host, whichever has them. A unit is
        the name of a service, or C(project:service) where several projects have one of that name. They are started and
        stopped, never created or removed.
    type: str
    choices: [auto, systemd, systemd_user, supervisor, compose]
    default: auto
    aliases: [manager]
  supervisor_socket:
    description: The unix socket of supervisord, looked for in C(/run) where it is not given; or the URL of its
      C([inet_http_server]) on this
      host, for example V(http://127.0.0.1:9001).
    type: path
    default: ""
  supervisor_username:
    description: The user of supervisord's C([unix_http_server]), where it asks for one.
    type: str
    default: ""
  supervisor_password:
    description: The password for O(supervisor_username). It is not shown.
    type: str
    default: ""
"""
