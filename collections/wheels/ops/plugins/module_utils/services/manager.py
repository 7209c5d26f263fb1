# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Finds out what runs the services of this host."""

from __future__ import annotations

import typing as t

from ..core.options import choice
from ..core.results import OpsError
from . import compose
from .model import Manager
from .supervisor import Supervisor, find_socket
from .systemd import Systemd, available

__all__ = ["available", "from_params", "open_manager"]


def open_manager(kind: str = "auto", socket: str = "", *, username: str = "", password: str = "") -> Manager:
    """The service manager: ``systemd``, ``systemd_user`` (that of the user who runs this), ``supervisor``, or ``auto``:
    supervisord where its socket is named, else systemd, else any supervisord, else Compose. ``compose``: the containers
    of ``docker compose`` or ``podman compose``.
    """
    choice("service_manager", kind, ("auto", "systemd", "systemd_user", "supervisor", "compose"))
    if kind == "compose":
        return compose.Compose()
    if kind == "systemd_user":
        return Systemd(user=True)
    if kind == "systemd" or (kind == "auto" and not socket and available()):
        return Systemd()
    if kind == "auto" and not socket and not find_socket():
        if compose.available():
            return compose.Compose()
        raise OpsError(
            "Neither systemd nor supervisord runs on this host, nor a container of Compose.",
            hint="Set service_manager, and supervisor_socket where it is not in /run.",
        )
    return Supervisor(socket, username=username, password=password)


def from_params(params: t.Mapping[str, t.Any]) -> Manager:
    """The service manager that the options in ``arguments.MANAGER`` name."""
    return open_manager(
        params.get("service_manager") or "auto",
        params.get("supervisor_socket") or "",
        username=params.get("supervisor_username") or "",
        password=params.get("supervisor_password") or "",
    )
