# SPDX-License-Identifier: GPL-3.0-or-later
"""A small fleet: two hosts behind a real HAProxy, restarted one after the other under load, by the tasks of deploy.

``make test-fleet`` has the large one, with the backend and whole playbooks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY
from tests.support.container_host import ContainerHost, Unavailable, container_host
from tests.support.load import Load
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
TASKS = REPOSITORY / "collections/wheels/ops/playbooks/tasks"
#: Answers a request after a moment, so that one is always under way, and is gone at once when it is told to end.
APP = """
import http.server, json, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(0.05)
        body = json.dumps({"pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
time.sleep(1)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
HAPROXY = """
global
  stats socket /run/haproxy/admin.sock mode 600 level admin
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend front
  bind :80
  default_backend pam
backend pam
  option httpchk GET /
  default-server inter 200ms fall 3 rise 1
"""
PLAY = """
- hosts: backend
  gather_facts: false
  serial: 1
  vars: {lock_purpose: deploy}
  tasks:
    - ansible.builtin.include_tasks: "{{ directory }}/drain.yml"
    - ansible.builtin.fail: {msg: as if it were killed}
      when: inventory_hostname == stop_at | default('')
    - ansible.builtin.command: systemctl restart app
      when: inventory_hostname != idle | default('')
    - ansible.builtin.uri: {url: "http://127.0.0.1:8000/"}
      register: answer
      until: answer is success
      retries: 60
      delay: 0.2
    - ansible.builtin.include_tasks: "{{ directory }}/restore.yml"
    - ansible.builtin.fail: {msg: "{{ restore_error }}"}
      when: restore_error | default('') != ''
"""
DRAIN = {
    f"wheels_ops_{word}_command": ["python3", "/usr/local/lib/haproxy_server.py", word, "pam/{{ inventory_hostname }}"]
    for word in ("drain", "restore")
}


class Hosts:
    """The proxy and the two behind it."""

    def __init__(self, place: Path, hosts: t.Mapping[str, ContainerHost]) -> None:
        self.place, self.hosts = place, hosts

    def play(self, **variables: object) -> subprocess.CompletedProcess[str]:
        """Ends one host after the other; gives what Ansible said."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        words = [program, "-i", str(self.place / "hosts.json"), str(self.place / "play.yml")]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.place / "home"),
        }
        extra = json.dumps({"directory": str(TASKS), **variables})
        return subprocess.run(
            [*words, "-e", extra], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )

    def under_load(self, **variables: object) -> t.Tuple[subprocess.CompletedProcess[str], Load]:
        load = Load(self.hosts["proxy"].address(), 80, keep_alive=False, pace=0.02)

        async def run() -> subprocess.CompletedProcess[str]:
            clients = [asyncio.ensure_future(load.client("/")) for _ in range(4)]
            done = await asyncio.to_thread(self.play, **variables)
            load.stop = True
            await asyncio.gather(*clients)
            return done

        return asyncio.run(run()), load

    def state(self, name: str) -> str:
        """By HAProxy itself: the first word of ``show stat``'s column ``status``."""
        text = self.hosts["proxy"].run(
            "python3",
            "-c",
            "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
            " s.sendall(b'show stat\\n'); sys.stdout.write(s.makefile().read())",
        )
        line = next(line for line in text.stdout.splitlines() if line.startswith(f"pam,{name},"))
        return line.split(",")[17].split()[0]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Hosts]:
    place = tmp_path_factory.mktemp("proxy")
    key = place / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    with contextlib.ExitStack() as stack:
        try:
            machines = {name: stack.enter_context(container_host(debian="13")) for name in ("one", "two", "proxy")}
        except Unavailable as reason:
            pytest.skip(f"no container host: {reason}")
        for host in machines.values():
            host.write("/root/.ssh/authorized_keys", key.with_suffix(".pub").read_text())
            host.run("chmod", "600", "/root/.ssh/authorized_keys")
        for name in ("one", "two"):
            machines[name].write("/root/app.py", APP)
            machines[name].unit("app", "/usr/bin/python3 /root/app.py")
            machines[name].run("mkdir", "-p", "/var/lib/wheels-ops")
        proxy = machines["proxy"]
        servers = "".join(f"  server {name} {machines[name].address()}:8000 check\n" for name in ("one", "two"))
        proxy.write("/etc/haproxy/haproxy.cfg", HAPROXY.lstrip() + servers)
        # A container has no namespaces to give away, and Debian's unit mounts /dev/log into one.
        proxy.write("/etc/systemd/system/haproxy.service.d/container.conf", "[Service]\nBindReadOnlyPaths=\n")
        program = REPOSITORY / "collections/wheels/ops/playbooks/files/haproxy_server.py"
        proxy.write("/usr/local/lib/haproxy_server.py", program.read_text())
        proxy.run("systemctl", "daemon-reload")
        proxy.run("systemctl", "restart", "haproxy")
        fleet = Hosts(place, machines)
        common = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        every = {
            name: {
                "ansible_host": host.address(),
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(key),
                "ansible_ssh_common_args": common,
                "ansible_python_interpreter": "/usr/bin/python3",
            }
            for name, host in machines.items()
        }
        inventory = {
            "all": {
                "children": {
                    "backend": {
                        "hosts": {name: every[name] for name in ("one", "two")},
                        "vars": {"wheels_ops_proxies": ["proxy"]},
                    },
                    "front": {"hosts": {"proxy": every["proxy"]}},
                }
            }
        }
        (place / "hosts.json").write_text(json.dumps(inventory))
        (place / "play.yml").write_text(PLAY)
        wait_until(lambda: {fleet.state("one"), fleet.state("two")} == {"UP"}, timeout=60, what="both servers")
        yield fleet


def starts(fleet: Hosts) -> t.List[str]:
    return [fleet.hosts[name].show("app", "InvocationID") for name in ("one", "two")]


def test_no_request_is_lost_while_each_host_restarts(hosts: Hosts) -> None:
    before = starts(hosts)
    done, load = hosts.under_load(**DRAIN)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert load.ok and not load.failed, load.failed
    assert not {*before} & {*starts(hosts)}, "both were restarted"
    assert (hosts.state("one"), hosts.state("two")) == ("UP", "UP")
    # The witness notices what a drain prevents.
    done, load = hosts.under_load()
    assert done.returncode == 0, done.stdout[-3000:]
    assert load.failed, "without a drain requests under way are cut"


def test_what_a_dead_run_drained_is_restored_by_the_next(hosts: Hosts) -> None:
    """Also where the next one has nothing to restart; the second host was not touched."""
    before = starts(hosts)
    done = hosts.play(stop_at="one", **DRAIN)
    assert done.returncode != 0
    assert (hosts.state("one"), hosts.state("two")) == ("DRAIN", "UP")
    assert starts(hosts) == before
    record = "/var/lib/wheels-ops/drained"
    assert hosts.hosts["one"].run("stat", "--format=%a", record).stdout.strip() == "600"
    done = hosts.play(idle="one", **DRAIN)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (hosts.state("one"), hosts.state("two")) == ("UP", "UP")
    assert hosts.hosts["one"].run("test", "-e", record, check=False).returncode == 1


def test_a_proxy_that_is_gone_stops_the_run_before_a_restart(hosts: Hosts) -> None:
    before = starts(hosts)
    hosts.hosts["proxy"].run("systemctl", "stop", "haproxy")
    try:
        done = hosts.play(**DRAIN)
    finally:
        hosts.hosts["proxy"].run("systemctl", "start", "haproxy")
    assert done.returncode != 0
    assert "HAProxy does not answer" in done.stdout + done.stderr
    assert starts(hosts) == before
