# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose answer it is that a service's readiness check gets: the service's, a proxy's in front of it, or a stranger's."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support.waiting import free_port, port_open, wait_until
from wheels_ops.services import gates
from wheels_ops.services.model import Gate, Service, ServiceState

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") or ""


class Processes:
    """A service manager that knows which processes are the service's, as systemd does by their control group."""

    def __init__(self, *pids: int) -> None:
        self.members = set(pids)

    def pids(self, _state: ServiceState) -> t.Set[int]:
        return self.members


@contextlib.contextmanager
def web_server(directory: Path, port: int) -> t.Iterator[int]:
    words = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(directory), str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: port_open(port), what="the web server")
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def nginx(place: Path, port: int, upstream: int) -> t.Iterator[int]:
    place.mkdir()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {place}/{kind};" for kind in kinds)
    configuration = place / "nginx.conf"
    configuration.write_text(
        f"pid {place}/pid; daemon off; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port};"
        f" location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }} }}\n"
    )
    process = subprocess.Popen([NGINX, "-e", str(place / "log"), "-c", str(configuration)])
    try:
        wait_until(lambda: port_open(port), what="nginx")
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def look(port: int, *pids: int) -> gates.Seen:
    gate = Gate(type="http", url=f"http://127.0.0.1:{port}/health", timeout=5)
    state = ServiceState("backend.service", exists=True, running=True, pid=pids[0])
    return gates._http(Service("backend", "backend.service", gate=gate), state, t.cast(t.Any, Processes(*pids)))


@pytest.mark.skipif(not NGINX, reason="no nginx here")
def test_behind_a_proxy_the_service_itself_has_to_answer(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/health").write_text("ok")
    own, other, front = free_port(), free_port(), free_port()
    with (
        web_server(tmp_path / "site", own) as service,
        web_server(tmp_path / "site", other) as stranger,
        nginx(tmp_path / "front", front, other),
        subprocess.Popen(["sleep", "600"]) as silent,
    ):
        assert look(own, service).ready
        assert look(front, service).ready
        # Another program that answers there is no proxy, and a service that listens nowhere is behind none.
        seen = look(other, service)
        assert not seen.ready and f"process {stranger} " in seen.why
        seen = look(front, silent.pid)
        assert not seen.ready and "which listens nowhere" in seen.why
        # The proxy passes on what a stranger answers; the service itself answers something else.
        with web_server(tmp_path, port := free_port()) as unhealthy:
            seen = look(front, unhealthy)
            assert not seen.ready and f"127.0.0.1:{port}/health answers 404" in seen.why
        silent.kill()
