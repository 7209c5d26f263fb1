# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes one line into the file that WHEELS_OPS_REMOTE_TASKS names for every module that Ansible runs on a host."""

from __future__ import annotations

import os
import typing as t

from ansible.plugins.callback import CallbackBase

#: Actions that Ansible carries out itself, without a round trip.
CONTROLLER_ONLY = frozenset(
    {
        "add_host",
        "assert",
        "debug",
        "fail",
        "group_by",
        "import_role",
        "import_tasks",
        "include_role",
        "include_tasks",
        "include_vars",
        "meta",
        "set_fact",
        "validate_argument_spec",
    }
)


class CallbackModule(CallbackBase):
    """One line a module run: the task's name."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "remote_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def _count(self, result: t.Any) -> None:
        task = result._task
        if task.action.rpartition(".")[2] in CONTROLLER_ONLY or task.delegate_to in ("localhost", "127.0.0.1"):
            return
        items = result._result.get("results") if task.loop is not None else None
        times = len([item for item in items if not item.get("skipped")]) if items is not None else 1
        with open(os.environ["WHEELS_OPS_REMOTE_TASKS"], "a", encoding="utf-8") as file:
            file.write(f"{task.get_name()}\n" * times)

    def v2_runner_on_ok(self, result: t.Any) -> None:
        self._count(result)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        self._count(result)
