# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus, Alertmanager and ansible-rulebook on loopback, with the files that the collection ships.

Only places are replaced in them: addresses, ports, and the paths of tokens and rules. Every interval is the shipped one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import typing as t
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import Sandbox
from tests.support.waiting import free_port, port_open, wait_until

FILES = REPOSITORY / "collections/wheels/ops/roles/monitoring/files/prometheus"
RULEBOOK = REPOSITORY / "collections/wheels/ops/extensions/eda/rulebooks/recover.yml"
TOKEN = "token-of-the-event-loop-test"
#: By the command that is needed, what to install.
NEEDED = {
    "prometheus": "the Debian package prometheus",
    "prometheus-alertmanager": "the Debian package prometheus-alertmanager",
    "java": "the Debian package default-jre-headless",
    str(Path(sys.executable).with_name("ansible-rulebook")): "ansible-rulebook (requirements/bootstrap dev)",
}


def missing() -> str:
    """What this machine does not have of the loop; empty where it has all."""
    return ", ".join(package for command, package in NEEDED.items() if not shutil.which(command))


@dataclass
class AlertLoop:
    """What runs. ``log`` is what ansible-rulebook and the playbooks that it started have printed."""

    directory: Path
    alertmanager: str
    webhook: str

    @property
    def log(self) -> str:
        """Without colours, and with white space folded, as messages are wrapped."""
        text = (self.directory / "ansible-rulebook.log").read_text(errors="replace")
        return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())

    def alerts(self) -> t.List[t.Dict[str, t.Any]]:
        """The alerts that Alertmanager holds as firing and that may start a recovery."""
        with urllib.request.urlopen(f"{self.alertmanager}/api/v2/alerts?active=true", timeout=10) as answer:
            alerts = t.cast("t.List[t.Dict[str, t.Any]]", json.load(answer))
        return [alert for alert in alerts if alert["labels"].get("wheels_ops") == "recover"]

    def notify(self, token: str = TOKEN, **labels: t.Any) -> int:
        """Sends what Alertmanager would send of one firing alert with these labels; gives the status of the answer."""
        labels = {"wheels_ops": "recover", **labels}
        alert = {"status": "firing", "labels": labels, "annotations": {"summary": "{{ lookup('pipe', 'id') }}"}}
        body = {"version": "4", "status": "firing", "commonLabels": labels, "alerts": [alert]}
        request = urllib.request.Request(
            self.webhook,
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


def _prometheus(sandbox: Sandbox, directory: Path, alertmanager_port: int) -> Path:
    document = yaml.safe_load((FILES / "prometheus.yml").read_text())
    document["rule_files"] = [str(FILES / "wheels-ops.rules.yml")]
    document["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager_port}"]
    (scrape,) = document["scrape_configs"]
    token = directory / "ops-token"
    token.write_text((sandbox.etc / "ops-token").read_text())
    scrape["authorization"]["credentials_file"] = str(token)
    target = sandbox.facts().base_url.partition("//")[2]
    scrape["static_configs"] = [{"targets": [target], "labels": {"host": "sandbox"}}]
    return _write(directory / "prometheus.yml", document)


def _alertmanager(directory: Path, webhook: str) -> Path:
    document = yaml.safe_load((FILES / "alertmanager.yml").read_text())
    (token := directory / "eda-token").write_text(TOKEN)
    (receiver,) = next(entry for entry in document["receivers"] if entry["name"] == "wheels-ops")["webhook_configs"]
    receiver["url"] = webhook
    receiver["http_config"]["authorization"]["credentials_file"] = str(token)
    return _write(directory / "alertmanager.yml", document)


def _write(path: Path, document: t.Any) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


@contextlib.contextmanager
def rulebook(sandbox: Sandbox, directory: Path, port: int, variables: t.Mapping[str, t.Any]) -> t.Iterator[None]:
    """ansible-rulebook with the shipped rulebook and the sandbox's inventory, to which ``variables`` are added."""
    inventory = directory / "inventory"
    shutil.copytree(REPOSITORY / "inventories/sandbox", inventory)
    _write(inventory / "group_vars/backend/of_this_loop.yml", dict(variables))
    secrets = _write(directory / "eda-vars.yml", {"wheels_ops_eda_token": TOKEN, "wheels_ops_eda_port": port})
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        # It starts the ansible-playbook that it finds.
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "WHEELS_OPS_SANDBOX": str(sandbox.directory),
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_HOME": str(REPOSITORY / ".ansible"),
        "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
    }
    words = [
        str(binaries / "ansible-rulebook"),
        *("--rulebook", str(RULEBOOK), "-i", str(inventory), "--vars", str(secrets)),
    ]
    with _running(words, directory / "ansible-rulebook.log", environment):
        wait_until(lambda: port_open(port), timeout=60, what="ansible-rulebook listens")
        yield


@contextlib.contextmanager
def alert_loop(sandbox: Sandbox, directory: Path, variables: t.Mapping[str, t.Any]) -> t.Iterator[AlertLoop]:
    """The whole loop, from the time that Prometheus has scraped the backend and Alertmanager answers."""
    prometheus_port, alertmanager_port, port = free_port(), free_port(), free_port()
    loop = AlertLoop(directory, f"http://127.0.0.1:{alertmanager_port}", f"http://127.0.0.1:{port}/endpoint")
    alertmanager = [
        "prometheus-alertmanager",
        f"--config.file={_alertmanager(directory, loop.webhook)}",
        f"--storage.path={directory}/alertmanager",
        f"--web.listen-address=127.0.0.1:{alertmanager_port}",
        "--cluster.listen-address=",
    ]
    prometheus = [
        "prometheus",
        f"--config.file={_prometheus(sandbox, directory, alertmanager_port)}",
        f"--storage.tsdb.path={directory}/prometheus",
        f"--web.listen-address=127.0.0.1:{prometheus_port}",
    ]

    def scraped() -> bool:
        query = "pam_health_check%7Bcheck%3D%22celery%3Aworkers%22%7D"
        url = f"http://127.0.0.1:{prometheus_port}/api/v1/query?query={query}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            series = json.load(answer)["data"]["result"]
        return bool(series) and series[0]["value"][1] == "0" and not loop.alerts()

    with contextlib.ExitStack() as stack:
        stack.enter_context(rulebook(sandbox, directory, port, variables))
        stack.enter_context(_running(alertmanager, directory / "alertmanager.log"))
        stack.enter_context(_running(prometheus, directory / "prometheus.log"))
        wait_until(scraped, timeout=60, what="Prometheus has scraped a backend that sees its worker")
        yield loop


@contextlib.contextmanager
def _running(
    words: t.Sequence[str], log: Path, environment: t.Optional[t.Mapping[str, str]] = None
) -> t.Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, env=environment, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
