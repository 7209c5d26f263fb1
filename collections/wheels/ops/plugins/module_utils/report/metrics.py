# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One health result in Prometheus' text format, for the textfile collector of node_exporter.

Every sample has the label ``host``, so that the files of a whole fleet may lie in one directory. The format is that of
https://prometheus.io/docs/instrumenting/exposition_formats/; a test has ``promtool check metrics`` read it.
"""

from __future__ import annotations

import typing as t
from calendar import timegm
from time import strptime

from ..core.version import VERSION
from ..health.thresholds import STATUSES
from . import runbooks

Health = t.Mapping[str, t.Any]
Sample = t.Tuple[t.Mapping[str, str], float]

#: Rises with the status, 0 for ok; a status that is not here was not measured.
SEVERITIES: t.Mapping[str, int] = {status: number for number, status in enumerate(STATUSES[STATUSES.index("ok") :])}
_SEVERITY_WORDS = ", ".join(f"{number} {status}" for status, number in SEVERITIES.items())

#: name -> help text, in the order of the file.
METRICS: t.Mapping[str, str] = {
    "wheels_ops_info": "1; the labels say which release of wheels.ops measured, and which of the backend it found.",
    "wheels_ops_last_run_timestamp_seconds": "When the checks were made, in seconds since the epoch.",
    "wheels_ops_run_duration_seconds": "How long all checks took.",
    "wheels_ops_severity": f"The worst of all checks: {_SEVERITY_WORDS}.",
    "wheels_ops_status": "1 for the status that the host has.",
    "wheels_ops_score": "0 to 100; none where something that it needs was not measured.",
    "wheels_ops_check_severity": f"{_SEVERITY_WORDS}; none where the check was not made.",
    "wheels_ops_check_status": "1 for the status that the check has.",
    "wheels_ops_check_value": "What the check measured, in the unit that the label names.",
    "wheels_ops_check_duration_seconds": "How long the check took.",
    "wheels_ops_runbook_info": "1; where the runbook of a check or an alert is, if wheels_ops_runbook_url says so.",
}


def text(health: Health, host: str, runbook_url: str = "") -> str:
    """The metrics of one host. What was not measured has no sample. ``runbook_url`` is a template of
    ``runbooks.address``; annotations of alert rules read it from here.
    """
    samples = _samples(health)
    if runbook_url:
        samples["wheels_ops_runbook_info"] = [
            ({"runbook": name, "url": runbooks.address(name, runbook_url)}, 1) for name in runbooks.PAGES
        ]
    lines = []
    for name, description in METRICS.items():
        lines += [f"# HELP {name} {description}", f"# TYPE {name} gauge"]
        lines += [f"{name}{_labels({**labels, 'host': host})} {value:.15g}" for labels, value in samples.get(name, ())]
    return "\n".join(lines) + "\n"


def _samples(health: Health) -> t.Dict[str, t.List[Sample]]:
    checks = health.get("checks", [])
    status = str(health.get("status", "unknown"))
    samples: t.Dict[str, t.List[Sample]] = {
        "wheels_ops_info": [({"version": VERSION, "release": _release(checks)}, 1)],
        "wheels_ops_severity": [({}, SEVERITIES.get(status, SEVERITIES["unknown"]))],
        "wheels_ops_status": [({"status": status}, 1)],
        "wheels_ops_score": [
            ({"score": name}, value) for name, value in (health.get("scores") or {}).items() if _is_number(value)
        ],
        "wheels_ops_check_status": [({"check": check["name"], "status": check["status"]}, 1) for check in checks],
    }
    measured_at = _seconds(health.get("measured_at"))
    if measured_at is not None:
        samples["wheels_ops_last_run_timestamp_seconds"] = [({}, measured_at)]
    if _is_number(health.get("duration_ms")):
        samples["wheels_ops_run_duration_seconds"] = [({}, health["duration_ms"] / 1000)]
    measured = [check for check in checks if check["status"] in SEVERITIES]
    samples["wheels_ops_check_severity"] = [({"check": each["name"]}, SEVERITIES[each["status"]]) for each in measured]
    samples["wheels_ops_check_duration_seconds"] = [
        ({"check": each["name"]}, each["duration_ms"] / 1000) for each in measured
    ]
    samples["wheels_ops_check_value"] = [
        ({"check": each["name"], "unit": each["unit"]}, each["value"]) for each in measured if _is_number(each["value"])
    ]
    return samples


def _release(checks: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """The release that the backend names in its own health; empty where it names none."""
    for check in checks:
        application = (check.get("details") or {}).get("application")
        if isinstance(application, dict):
            return str(application.get("release") or "")
    return ""


def _seconds(stamp: t.Any) -> t.Optional[float]:
    try:
        return float(timegm(strptime(str(stamp)[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return None


def _is_number(value: t.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _labels(labels: t.Mapping[str, str]) -> str:
    words = []
    for name, value in labels.items():
        escaped = str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        words.append(f'{name}="{escaped}"')
    return f"{{{','.join(words)}}}"
