# SPDX-License-Identifier: GPL-3.0-or-later
"""backend_info on a host with systemd whose units have other names, and as a user who may see little."""

from __future__ import annotations

import typing as t

import pytest

from tests.sandbox.binaries import REPOSITORY
from tests.support.container_host import ContainerHost, Unavailable, container_host
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.slow]
PASSWORD = "hunter2222-and-more"
PYTHON = f"{REPOSITORY}/.venv-backend/bin/python"
MAIN = """
from fastapi import APIRouter, FastAPI, WebSocket
app, router = FastAPI(), APIRouter(prefix="/chat")
@app.get("/healthz")
def health() -> dict: return {}
@router.websocket("/ws/{user_id}")
async def socket(websocket: WebSocket, user_id: str) -> None: await websocket.accept()
app.include_router(router, prefix="/api")
"""
JOBS = "import os\nfrom celery import Celery\ncelery = Celery(broker=os.environ['QUEUE'])\n"
VARIABLES = f"""# of the site
DATABASE_URL="postgresql+asyncpg://app:{PASSWORD}@db.example:5432/pam"
REDIS_URL=redis://127.0.0.1:6379/1
LOG_DIR=/var/log/wheels
BACKEND_CORS_ORIGINS='["https://pam.example"]'
"""


@pytest.fixture(scope="module")
def host() -> t.Iterator[ContainerHost]:
    try:
        # Root of a host sees into every process; root of a container only with this.
        with container_host(["SYS_PTRACE"]) as host:
            host.user("wheels")
            host.write("/srv/wheels/releases/7/app/main.py", MAIN)
            host.write("/srv/wheels/releases/7/app/jobs.py", JOBS)
            host.run("ln", "-s", "releases/7", "/srv/wheels/current")
            host.run("mkdir", "-p", "/var/log/wheels")
            host.write("/etc/wheels/web.env", VARIABLES)
            host.run("chmod", "600", "/etc/wheels/web.env")
            host.write("/srv/wheels/start", f"#!/bin/sh\nexec {PYTHON} -m uvicorn app.main:app --port 9100\n")
            host.run("chmod", "755", "/srv/wheels/start")
            common = {
                "User": "wheels",
                "WorkingDirectory": "/srv/wheels/current",
                "EnvironmentFile": "/etc/wheels/web.env",
                "Environment": "PYTHONDONTWRITEBYTECODE=1 QUEUE=redis://127.0.0.1:6379/2",
            }
            host.unit("front", "/srv/wheels/start", **common, MemoryMax="700M")
            host.unit("jobs@a", f"{PYTHON} -m celery -A app.jobs worker --concurrency=1", **common)
            host.unit("clock", f"{PYTHON} -m celery -A app.jobs beat -s /tmp/schedule", **common)
            host.unit("celery-like", "/usr/bin/sleep 1000")
            host.run("systemctl", "add-wants", "multi-user.target", "front.service")
            ready = "exec 3<>/dev/tcp/127.0.0.1/9100 && ls /tmp/schedule*"
            wait_until(
                lambda: host.run("bash", "-c", ready, check=False).returncode == 0,
                every=0.5,
                what="the backend and its beat",
            )
            yield host
    except Unavailable as error:
        pytest.skip(f"no host with systemd on this machine: {error}")


def variables(result: t.Mapping[str, t.Any]) -> t.Dict[str, t.Any]:
    return {each["name"]: each["value"] for each in result["variables"]}


def test_host_with_other_names(host: ContainerHost) -> None:
    result = host.module("backend_info", {})
    read = variables(result)
    assert {each["name"]: each["kind"] for each in result["services"]} == {
        "redis-server": "redis",
        "front": "api",
        "jobs@a": "celery_worker",
        "clock": "celery_beat",
    }
    assert read["wheels_ops_backend_dir"] == "/srv/wheels/current"
    assert read["wheels_ops_backend_python"] == PYTHON
    assert read["wheels_ops_backend_user"] == "wheels"
    assert read["wheels_ops_base_url"] == "http://127.0.0.1:9100"
    assert read["monitoring_http_paths"] == ["/healthz"]
    assert read["monitoring_websocket_path"] == "/api/chat/ws/{user_id}"
    assert read["wheels_ops_database_dsn"] == "file:///etc/wheels/web.env#DATABASE_URL"
    assert read["wheels_ops_redis_url"] == "file:///etc/wheels/web.env#REDIS_URL"
    assert read["wheels_ops_redis_unit"] == "redis-server"
    assert read["wheels_ops_memory_limits_mb"] == {"front": 700.0}
    assert read["wheels_ops_log_directories"] == ["/var/log/wheels"]
    assert read["wheels_ops_cors_origins"] == ["https://pam.example"]
    gates = {each["name"]: each["gate"] for each in read["wheels_ops_services"]}
    assert gates["front"] == {"type": "http", "url": "{{ wheels_ops_base_url }}/healthz"}
    assert gates["clock"]["schedule_file"] == "/tmp/schedule"
    assert result["release"] == "7"
    assert PASSWORD not in str(result)
    assert not result["changed"]


def test_reference_is_what_the_modules_read(host: ContainerHost) -> None:
    read = variables(host.module("backend_info", {}))
    services = [
        {**each, "gate": {**each["gate"], "url": read["wheels_ops_redis_url"]}}
        for each in read["wheels_ops_services"][:1]
    ]
    done = host.module("health_info", {"subjects": ["services"], "services": services})
    assert done["checks"][0]["status"] == "ok", done
    missing = host.module("health_info", {"subjects": ["redis"], "redis_url": "file:///etc/wheels/web.env#NOTHING"})
    assert missing["msg"].startswith("/etc/wheels/web.env does not set the variable NOTHING.")


def test_stopped_backend_keeps_its_address(host: ContainerHost) -> None:
    host.run("systemctl", "stop", "front")
    try:
        result = host.module("backend_info", {})
    finally:
        host.run("systemctl", "start", "front")
    read = variables(result)
    assert read["wheels_ops_database_dsn"] == "file:///etc/wheels/web.env#DATABASE_URL"
    assert read["wheels_ops_base_url"] == "http://127.0.0.1:9100"
    assert "front" in [each["name"] for each in read["wheels_ops_services"]]


def test_user_without_rights_is_told(host: ContainerHost) -> None:
    result = host.module("backend_info", {}, user="wheels")
    assert "ansible_become" in result["notes"][0]
    lacking = [each for each in result["missing"] if each["variable"] == "wheels_ops_database_dsn"]
    assert "cannot be read" in lacking[0]["what"]
    assert PASSWORD not in str(result)
