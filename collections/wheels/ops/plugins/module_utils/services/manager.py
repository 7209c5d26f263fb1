# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Finds out what runs the services of this host."""

from __future__ import annotations

from .model import Manager
from .supervisor import Supervisor
from .systemd import Systemd, available


def open_manager(kind: str, socket: str = "") -> Manager:
    """The service manager: ``systemd``, ``supervisor``, or ``auto`` for the one that runs here."""
    if kind == "supervisor" or (kind == "auto" and (socket or not available())):
        return Supervisor(socket)
    return Systemd()
