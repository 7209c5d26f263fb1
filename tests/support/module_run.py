# SPDX-License-Identifier: GPL-3.0-or-later
"""An Ansible module run as Ansible runs it: a process of its own, arguments in, JSON out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t

from tests.support.collection import COLLECTION


def run_module(name: str, *, check: bool = False, **arguments: t.Any) -> t.Dict[str, t.Any]:
    """The module's result, ``failed`` and all."""
    internal = {"_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"}
    completed = subprocess.run(
        [sys.executable, str(COLLECTION / f"plugins/modules/{name}.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **internal}}),
        env={**os.environ, "PYTHONPATH": str(COLLECTION.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        result: t.Dict[str, t.Any] = json.loads(completed.stdout)
    except ValueError:
        raise AssertionError(f"{name} gave no result:\n{completed.stdout}\n{completed.stderr}") from None
    return result
