# SPDX-License-Identifier: GPL-3.0-or-later
"""How many modules a playbook runs on its hosts: each is a round trip, whatever the machine's load."""

from __future__ import annotations

import typing as t
from pathlib import Path


def counting(file: Path) -> t.Dict[str, str]:
    """The environment with which ``ansible-playbook`` writes a line into ``file`` for each."""
    return {
        "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).with_name("callbacks")),
        "ANSIBLE_CALLBACKS_ENABLED": "remote_tasks",
        "WHEELS_OPS_REMOTE_TASKS": str(file),
    }


def counted(file: Path) -> t.List[str]:
    """The names of the tasks, in order; those of a loop once an item."""
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
