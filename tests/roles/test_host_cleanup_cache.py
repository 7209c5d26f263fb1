# SPDX-License-Identifier: GPL-3.0-or-later
"""One call of the health API ends after seconds, with keys left; the role goes on until none is."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

import pytest
import redis as redis_client

from tests.support import servers
from tests.support.backend_env import REPOSITORY

PLAY = """
- hosts: localhost
  gather_facts: false
  vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  tasks:
    - ansible.builtin.include_role: {name: wheels.ops.host_cleanup, tasks_from: cache.yml}
    - ansible.builtin.debug: {msg: "said: {{ host_cleanup_cache.msg | default('nothing') }}"}
"""


@contextlib.contextmanager
def backend(redis_url: str, *, at_once: int) -> t.Iterator[t.Tuple[str, t.List[str]]]:
    """(its URL, the paths that were asked for): gives an expiry to as many keys a call."""
    calls: t.List[str] = []
    connection = redis_client.Redis.from_url(redis_url)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.append(self.path)
            eternal = [key for key in connection.scan_iter() if connection.ttl(key) == -1]
            for key in eternal[:at_once]:
                connection.expire(key, 600)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *words: t.Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", calls
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("at_once", "calls", "left"), [(40, 3, 0)])
def test_the_cache_is_cleared_until_nothing_is_left(
    redis: servers.Redis, tmp_path: Path, at_once: int, calls: int, left: int
) -> None:
    connection = redis_client.Redis.from_url(redis.url)
    connection.flushdb()
    for number in range(100):
        connection.set(f"user_profile:{number}", "1")
    token = tmp_path / "ops-token"
    token.write_text("a-token-of-this-test-alone\n")
    (tmp_path / "play.yml").write_text(PLAY)
    with backend(redis.url, at_once=at_once) as (url, asked):
        values = {
            "wheels_ops_redis_url": redis.url,
            "wheels_ops_base_url": url,
            "wheels_ops_token_file": str(token),
            "wheels_ops_state_dir": str(tmp_path / "state"),
            "wheels_ops_python": sys.executable,
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        done = subprocess.run(
            [program, "-i", "localhost,", "-c", "local", str(tmp_path / "play.yml"), "-e", json.dumps(values)],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
                "ANSIBLE_HOME": str(tmp_path),
                "ANSIBLE_FORCE_COLOR": "0",
            },
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:]
    assert asked == ["/api/v1/system/cache/clear?cache_type=redis"] * calls
    assert sum(connection.ttl(key) == -1 for key in connection.scan_iter()) == left
    assert f"said: Keys without an expiry: 100 before, {left} now." in " ".join(done.stdout.split())
