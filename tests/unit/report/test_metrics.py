# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics of a host as Prometheus' own tools read them, and the rules that ship with them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.support.collection import COLLECTION
from wheels_ops.core.version import VERSION
from wheels_ops.health.check import Check
from wheels_ops.report import metrics

FILES = COLLECTION / "roles/monitoring/files"
RULES = FILES / "prometheus/wheels-ops.rules.yml"
promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")


def health(status: str = "critical", **further: t.Any) -> t.Dict[str, t.Any]:
    checks = [
        Check("disk", status, value=97.8, unit="%", message="full", duration_ms=120).as_dict(),
        Check("redis", "ok", value=0, unit="keys without expiry", duration_ms=35.5).as_dict(),
        Check("database", "skipped").as_dict(),
        Check("tts", "unknown", value=None).as_dict(),
    ]
    scores = {"performance": 88.5, "stability": None}
    base = {"status": status, "measured_at": "2026-01-31T03:00:00Z", "duration_ms": 2500.0, "scores": scores}
    return {**base, "checks": checks, **further}


def samples(text: str) -> t.Dict[str, str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.rsplit(" ", 1) for line in lines)


def test_metrics_carry_host_time_status_scores_and_release() -> None:
    written = samples(metrics.text(health(), "web1"))
    assert written['wheels_ops_last_run_timestamp_seconds{host="web1"}'] == "1769828400"
    assert written['wheels_ops_run_duration_seconds{host="web1"}'] == "2.5"
    assert written['wheels_ops_severity{host="web1"}'] == str(metrics.SEVERITIES["critical"])
    assert written['wheels_ops_status{status="critical",host="web1"}'] == "1"
    assert written['wheels_ops_score{score="performance",host="web1"}'] == "88.5"
    assert f'wheels_ops_info{{version="{VERSION}",release="",host="web1"}}' in written
    assert written['wheels_ops_check_value{check="disk",unit="%",host="web1"}'] == "97.8"
    assert written['wheels_ops_check_status{check="database",status="skipped",host="web1"}'] == "1"
    assert not [name for name in written if "stability" in name], "what was not measured has no sample"
    assert not [name for name in written if name.startswith("wheels_ops_check_severity{") and "database" in name]
    assert all('host="web1"' in name for name in written)


def test_metrics_say_where_the_runbooks_are_if_the_inventory_does() -> None:
    written = metrics.text(health(), "web1", "https://docs.example.com/{name}.html")
    sample = 'wheels_ops_runbook_info{runbook="disk",url="https://docs.example.com/disk.html",host="web1"}'
    assert samples(written)[sample] == "1"
    assert "wheels_ops_runbook_info{" not in metrics.text(health(), "web1")


def test_metrics_of_two_hosts_are_different_series() -> None:
    first, second = (samples(metrics.text(health(status), host)) for host, status in (("a", "ok"), ("b", "critical")))
    assert not set(first) & set(second)


def test_labels_are_escaped() -> None:
    written = metrics.text(health(), 'a"b\\c\nd')
    assert 'wheels_ops_check_severity{check="disk",host="a\\"b\\\\c\\nd"} 3' in written


@promtool
@pytest.mark.parametrize("document", [health(), health("ok"), {"checks": []}, {}])
def test_promtool_has_no_complaint(document: t.Dict[str, t.Any]) -> None:
    text = metrics.text(document, "web1")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_rules_use_the_numbers_of_the_metrics() -> None:
    rules = {rule["alert"]: rule for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    for alert, status in (("Critical", "critical"), ("Unknown", "unknown"), ("Warning", "warning")):
        assert rules[f"WheelsOpsCheck{alert}"]["expr"].split()[-1] == str(metrics.SEVERITIES[status])
    for rule in rules.values():
        assert set(re.findall(r"wheels_ops_\w+", rule["expr"])) <= set(metrics.METRICS)
    assert [name for name, rule in rules.items() if "wheels_ops" in rule["labels"]] == ["WheelsOpsCheckCritical"]


@promtool
def test_rules_of_the_backend_fire_within_seconds(tmp_path: Path) -> None:
    """With the interval that is shipped; what passes again and a restart fire nothing."""
    (group,) = (entry for entry in yaml.safe_load(RULES.read_text())["groups"] if entry["name"] == "wheels-ops-backend")
    assert {rule["labels"]["wheels_ops"] for rule in group["rules"]} == {"recover"}
    shutil.copy(RULES, tmp_path / "rules.yml")
    failing, passing = (f'pam_health_check{{check="celery:workers",host="{host}"}}' for host in "ab")
    up = 'up{job="pam-backend",host="%s"}'
    series = [
        {"series": failing, "values": "0 2x50"},
        {"series": passing, "values": "0 2 0x50"},
        {"series": up % "c", "values": "1 0x50"},
        {"series": up % "d", "values": "1 0x5 1x50"},
    ]
    expected = {"WheelsOpsBackendFailing": {"15s": ["a"]}, "WheelsOpsBackendDown": {"30s": [], "40s": ["c"]}}
    rules = {rule["alert"]: rule for rule in group["rules"]}

    def fired(alert: str, host: str) -> t.Dict[str, t.Any]:
        labels = {"host": host, "severity": "critical", "wheels_ops": "recover"}
        more = {"check": "celery:workers"} if "Failing" in alert else {"job": "pam-backend"}
        texts = {
            name: text.replace("{{ $labels.host }}", host).replace("{{ $labels.check }}", "celery:workers")
            for name, text in rules[alert]["annotations"].items()
        }
        texts["runbook_url"] = f"docs/runbooks/{alert}.md"
        return {"exp_labels": {**labels, **more}, "exp_annotations": texts}

    asked = [
        {"eval_time": at, "alertname": alert, "exp_alerts": [fired(alert, host) for host in hosts]}
        for alert, moments in expected.items()
        for at, hosts in moments.items()
    ]
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": group["interval"],
        "tests": [{"interval": "5s", "input_series": series, "alert_rule_test": asked}],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_shipped_configurations_are_valid(tmp_path: Path) -> None:
    prometheus = yaml.safe_load((FILES / "prometheus/prometheus.yml").read_text())
    prometheus["rule_files"] = [str(RULES)]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(prometheus))
    commands = [["promtool", "check", "config", "--syntax-only", str(tmp_path / "prometheus.yml")]]
    if shutil.which("amtool"):
        commands.append(["amtool", "check-config", str(FILES / "prometheus/alertmanager.yml")])
    for words in commands:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((FILES / "grafana/wheels-ops.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"wheels_ops_\w+", query)}
    assert asked and asked <= set(metrics.METRICS)
    mapping = dashboard["panels"][0]["fieldConfig"]["defaults"]["mappings"][0]["options"]
    assert {entry["text"]: int(number) for number, entry in mapping.items()} == dict(metrics.SEVERITIES)


@promtool
def test_rules_fire_as_they_should(tmp_path: Path) -> None:
    """A critical check for five minutes, a host that is not measured any more, and neither on a healthy host."""
    shutil.copy(RULES, tmp_path / "rules.yml")
    critical, seen = 'wheels_ops_check_severity{check="disk",host="b"}', "wheels_ops_last_run_timestamp_seconds"
    runbook = "https://docs.example.com/disk.html"
    series = [
        {"series": 'wheels_ops_check_severity{check="disk",host="a"}', "values": "0x120"},
        {"series": critical, "values": "0 3x119"},
        {"series": f'{seen}{{host="a"}}', "values": "0+60x120"},
        {"series": f'{seen}{{host="c"}}', "values": "0x120"},
        {"series": f'wheels_ops_runbook_info{{runbook="disk",url="{runbook}",host="b"}}', "values": "1x120"},
    ]

    def expect(alert: str, at: str, *alerts: t.Dict[str, t.Any]) -> t.Dict[str, t.Any]:
        return {"eval_time": at, "alertname": alert, "exp_alerts": list(alerts)}

    labels = {"severity": "critical", "wheels_ops": "recover", "check": "disk", "host": "b"}
    rules = {rule["alert"]: rule for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    fired = {
        "exp_labels": labels,
        "exp_annotations": {
            "summary": "disk is critical on b",
            "runbook_url": runbook,
            "description": rules["WheelsOpsCheckCritical"]["annotations"]["description"].replace(
                "{{ $labels.host }}", "b"
            ),
        },
    }
    stopped = {
        "exp_labels": {"severity": "critical", "host": "c"},
        "exp_annotations": {
            "summary": "c is not measured any more",
            "description": "The last run was 1h 1m 0s ago. On the host: systemctl status wheels-ops-monitor.timer",
            # This host's metrics do not say where runbooks are published.
            "runbook_url": "docs/runbooks/WheelsOpsRunStopped.md",
        },
    }
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [
                    expect("WheelsOpsCheckCritical", "5m"),
                    expect("WheelsOpsCheckCritical", "7m", fired),
                    expect("WheelsOpsRunStopped", "60m"),
                    expect("WheelsOpsRunStopped", "61m", stopped),
                    expect("WheelsOpsClockAhead", "61m"),
                ],
            }
        ],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    for words in (["check", "rules", "rules.yml"], ["test", "rules", "tests.yml"]):
        done = subprocess.run(["promtool", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
