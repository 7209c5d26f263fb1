# SPDX-License-Identifier: GPL-3.0-or-later
"""inventory_files as Ansible runs it; what it writes is tested beside the library."""

from __future__ import annotations

import typing as t
from pathlib import Path

from tests.support.module_run import run_module


def test_references_are_written_and_not_followed(tmp_path: Path) -> None:
    """The file that a variable refers to is on another machine; one of that name here is nobody's business."""
    secret = tmp_path / "web.env"
    secret.write_text("BROKER_URL=redis://:hunter2222@127.0.0.1/0\n")
    reference = f"file://{secret}#BROKER_URL"
    gate = {"type": "celery", "url": reference}
    options: t.Dict[str, t.Any] = {
        "directory": str(tmp_path / "inventory"),
        "host": "pam-1",
        "variables": [{"name": "wheels_ops_services", "value": [{"name": "jobs", "gate": gate}], "evidence": "x"}],
    }
    predicted = run_module("inventory_files", check=True, **options)
    assert not (tmp_path / "inventory").exists()
    result = run_module("inventory_files", **options)
    assert (predicted["changed"], predicted["diff"]) == (True, result["diff"])
    written = (tmp_path / "inventory/host_vars/pam-1/00-discovered.yml").read_text()
    assert reference in written
    assert "hunter2222" not in written + str(result)
    assert not run_module("inventory_files", **options)["changed"]
