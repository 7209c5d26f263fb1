# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sandbox holds, read without the code under test; and what the files of its tests share."""

from __future__ import annotations

import hashlib
import json
import typing as t
from pathlib import Path

from tests.playbooks.conftest import Stage
from tests.support.backend_env import make_jwt

EIGHT = ("memory", "tts", "database", "rls", "websocket", "cors", "cpu", "disk", "redis")
#: For runs of which the health is not what is tested: a look at everything takes ten seconds, twice in a deployment.
LOOK = ("-e", '{"monitoring_subjects": ["http"]}')
CATALOG = {
    "policies": (
        "select polrelid::regclass, polname, polcmd, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck,"
        " polrelid) from pg_policy order by 1, 2"
    ),
    "tables": (
        "select table_schema, table_name, column_name, data_type from information_schema.columns where table_schema not"
        " like 'pg_%' order by 1, 2, 3"
    ),
    "functions": "select proname, prosrc from pg_proc order by 1, 2",
}


def fingerprint(stage: Stage) -> t.Dict[str, str]:
    """Everything that a deployment may change: files with their modes and times, the catalog, the processes."""
    found = {}
    roots = (stage.sandbox.backend, stage.sandbox.etc, stage.sandbox.state, stage.sandbox.tmp)
    for root in roots:
        for path in sorted(root.rglob("*")):
            if (
                path.is_file()
                and "__pycache__" not in path.parts
                and path.suffix not in (".sqlite", ".sqlite-wal", ".sqlite-shm")
            ):
                status = path.stat()
                found[str(path)] = (
                    f"{hashlib.sha256(path.read_bytes()).hexdigest()} {status.st_mode:o} {status.st_mtime_ns}"
                )
    for kind, query in CATALOG.items():
        found[kind] = hashlib.sha256(repr(stage.sql(query)).encode()).hexdigest()
    for info in stage.rpc().getAllProcessInfo():
        found[f"process {info['name']}"] = str(info["pid"])
    return found


def tree(root: Path) -> t.Dict[str, str]:
    """Contents and modes of a directory."""
    return {
        str(path.relative_to(root)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mode:o}"
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def report(stage: Stage, name: str) -> t.Any:
    return json.loads((stage.sandbox.reports / name).read_text())


def statuses(health: t.Mapping[str, t.Any]) -> t.Dict[str, str]:
    return {check["name"]: check["status"] for check in health["checks"]}


def token(stage: Stage, user: str) -> str:
    return make_jwt(user, key=stage.facts.secret_key)
