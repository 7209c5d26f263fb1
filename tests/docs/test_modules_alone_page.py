# SPDX-License-Identifier: GPL-3.0-or-later
"""The page's playbook, as it stands there, on a host with the system's own Python and nothing of ours."""

from __future__ import annotations

import re
import sys
import typing as t

import pytest
import yaml

from tests.support import log_writer
from tests.support.collection import COLLECTION, REPOSITORY
from tests.support.container_host import ContainerHost, Unavailable, container_host
from tests.support.waiting import wait_until

PAGE = REPOSITORY / "docs/use-modules-alone.md"


def playbook() -> str:
    [text] = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return t.cast(str, text)


def test_the_page_names_modules_that_are_there() -> None:
    named = re.findall(r"\((\.\./collections/[^)]*\.py)\)", PAGE.read_text())
    assert len(named) == 6 and all((PAGE.parent / path).is_file() for path in named)
    used = {key for task in yaml.safe_load(playbook())[0]["tasks"] for key in task if key.startswith("wheels.ops.")}
    assert {f"{COLLECTION}/plugins/modules/{name.rpartition('.')[2]}.py" for name in used} <= {
        str((PAGE.parent / path).resolve()) for path in named
    }


@pytest.fixture(scope="module")
def host() -> t.Iterator[ContainerHost]:
    try:
        with container_host() as host:
            yield host
    except Unavailable as error:
        pytest.skip(f"no host with systemd on this machine: {error}")


@pytest.mark.root
@pytest.mark.slow
def test_the_pages_playbook_runs_on_a_bare_host(host: ContainerHost) -> None:
    log, uploads = "/var/log/myapp/access.log", "/srv/myapp/uploads"
    host.run("mkdir", "-p", "/var/log/myapp", uploads)
    host.run("sh", "-c", f"touch -d '3 days ago' {uploads}/old.part {uploads}/old.jpg; touch {uploads}/new.part")
    host.run("sh", "-c", f"head -c 51000000 /dev/zero | tr '\\0' '\\n' > {log}")
    host.unit("myapp", "/usr/bin/python3 -m http.server 8080 --bind 127.0.0.1")
    host.unit("writer", f"{sys.executable} {log_writer.__file__} {log} append 100 0")
    wait_until(lambda: host.run("cat", "/proc/net/tcp").stdout.count(":1F90 "), what="the port")
    pid = host.show("myapp", "MainPID")
    foreseen = host.playbook(playbook(), "--check")
    assert host.run("ls", uploads).stdout.split() == ["new.part", "old.jpg", "old.part"]
    assert host.show("myapp", "MainPID") == pid
    host.playbook(playbook())
    assert host.run("ls", uploads).stdout.split() == ["new.part", "old.jpg"]
    assert int(host.run("stat", "-c", "%s", log).stdout) < 50_000_000
    assert host.run("sh", "-c", "ls /var/log/myapp/access.log.*.gz").stdout.count("\n") == 1
    assert "/var/log/myapp/*.log" in host.run("cat", "/etc/logrotate.d/myapp").stdout
    assert host.show("myapp", "MainPID") != pid and host.show("myapp", "ActiveState") == "active"
    assert host.run("test", "-e", "/opt/wheels-ops", check=False).returncode, "nothing of ours was installed"
    assert "failed=0" in foreseen
