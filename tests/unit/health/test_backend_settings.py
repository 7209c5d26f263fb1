# SPDX-License-Identifier: GPL-3.0-or-later
"""One host, one truth: a threshold that is set turns every one that grades by it, the host's side and the backend's
own.
"""

from __future__ import annotations

import json
import sys
import types
import typing as t
from pathlib import Path

import pytest

from tests.support.collection import BIN, COLLECTION, REPOSITORY, run
from wheels_ops.checks import suite
from wheels_ops.core.results import OpsError
from wheels_ops.health.backend_settings import VARIABLES, threshold_variables
from wheels_ops.health.check import Check
from wheels_ops.health.thresholds import DEFAULTS, parse
from wheels_ops.remedies.memory import trim
from wheels_ops.report.performance import MEASURES
from wheels_ops.standalone.settings import load

Modules = t.Callable[[str], types.ModuleType]
#: Not a default of any measure.
CHANGED: t.Dict[str, t.Dict[str, float]] = {
    "memory": {"warning": 41, "critical": 42.5, "emergency": 43},
    "cpu": {"warning": 44, "critical": 45},
    "disk": {"warning": 46, "critical": 47},
    "response_time_ms": {"warning": 4800, "critical": 4900},
    "error_rate": {"warning": 0, "critical": 50},
    "waiting_tasks": {"warning": 51, "critical": 52},
    "websocket_ms": {"warning": 53, "critical": 54},
}
#: How the backend calls what it grades by a threshold.
METRICS = {
    "memory": ["memory_percent"],
    "cpu": ["cpu_percent"],
    "disk": ["disk_percent", "disk_inodes_percent"],
    "response_time_ms": ["response_time_ms"],
    "error_rate": ["error_rate"],
}


ROLES = ("services", "host_cleanup", "monitoring")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> t.Dict[str, t.Any]:
    """What the roles make of ``wheels_ops_thresholds``: the backend's environment, and the settings of health check,
    recovery and programs.
    """
    place = tmp_path_factory.mktemp("roles")
    files = [COLLECTION / f"roles/{name}/{part}/main.yml" for name in ROLES for part in ("defaults", "vars")]
    facts = [(name, "program_options.yml") for name in ("services", "host_cleanup")]
    roles = [{"ansible.builtin.include_vars": str(path)} for path in files if path.exists()] + [
        {"ansible.builtin.include_role": {"name": f"wheels.ops.{name}", "tasks_from": tasks}}
        for name, tasks in [*facts, ("environment", "preflight.yml")]
    ]
    content = (
        "{{ {'environment': environment_planned, 'checks': monitoring_configuration.checks.thresholds, 'health':"
        " monitoring_thresholds,"
    )
    content += " 'memory': host_cleanup_memory_thresholds} | to_json }}"
    tasks: t.List[t.Dict[str, t.Any]] = [
        *roles,
        {"ansible.builtin.copy": {"content": content, "dest": str(place / "out.json"), "mode": "0600"}},
    ]
    (place / "play.yml").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    variables = {
        "wheels_ops_thresholds": CHANGED,
        "ansible_python_interpreter": sys.executable,
        "wheels_ops_venv": sys.prefix,
    }
    done = run(
        str(BIN / "ansible-playbook"),
        "-i",
        "localhost,",
        "-c",
        "local",
        str(place / "play.yml"),
        "-e",
        json.dumps(variables),
        cwd=place,
        ANSIBLE_COLLECTIONS_PATH=str(REPOSITORY / "collections"),
        ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"),
        ANSIBLE_HOME=str(place / "home"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return t.cast("t.Dict[str, t.Any]", json.loads((place / "out.json").read_text()))


@pytest.mark.parametrize("name", METRICS)
def test_the_backend_grades_by_the_limits_of_its_host(
    written: t.Dict[str, t.Any], app_modules: Modules, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable, value in written["environment"].items():
        monkeypatch.setenv(variable, value)
    monitor = app_modules("core.performance_monitor").PerformanceMonitor()
    for metric in METRICS[name]:
        assert monitor.thresholds[metric] == {
            level: limit for level, limit in CHANGED[name].items() if level != "emergency"
        }
    if name == "memory":
        optimizer = app_modules("monitoring.memory_optimizer").MemoryOptimizer()
        tiers = (
            optimizer.memory_warning_threshold,
            optimizer.memory_critical_threshold,
            optimizer.memory_emergency_threshold,
        )
        assert tiers == tuple(CHANGED["memory"].values())
    if name == "cpu":
        assert app_modules("wheels_ops.load").levels() == (44, 45, 95)


@pytest.mark.parametrize("name", DEFAULTS)
def test_health_check_programs_and_recovery_have_them(written: t.Dict[str, t.Any], tmp_path: Path, name: str) -> None:
    assert parse(written["health"])[name].as_dict() == {"emergency": None, **CHANGED[name]}
    config = tmp_path / "monitor.json"
    config.write_text(json.dumps({"state_dir": str(tmp_path), "checks": {"thresholds": written["checks"]}}))
    config.chmod(0o600)
    assert load(str(config)).checks.thresholds[name].as_dict() == {"emergency": None, **CHANGED[name]}
    assert written["memory"] == CHANGED["memory"]


@pytest.mark.parametrize("name", ["memory", "cpu", "disk"])
def test_what_is_measured_turns_when_its_limit_is_set(name: str) -> None:
    """A value above zero is critical, or nothing is, by the limits alone."""

    def status(limit: float) -> str:
        limits = parse({name: {"warning": limit, "critical": limit, "emergency": None}})
        found = suite.run(suite.Options(subjects=(name,), thresholds=limits, base_url=""))["checks"][0]
        assert found["thresholds"] == limits[name].as_dict()
        return str(found["status"])

    assert (status(0), status(100)) == ("critical", "ok")


def test_every_threshold_has_its_variables_and_its_history() -> None:
    assert list(VARIABLES) == list(DEFAULTS)
    assert [name for name, variables in VARIABLES.items() if not variables] == ["websocket_ms"]
    assert list(MEASURES) == list(METRICS)


def test_the_backend_warns_of_waiting_tasks_from_the_same_number_on(written: t.Dict[str, t.Any]) -> None:
    assert written["environment"]["CELERY_QUEUE_DEPTH_WARNING"] == "51"
    read = (COLLECTION / "roles/backend_patches/files/app/wheels_ops/health_checks.py").read_text()
    assert f'env.number("CELERY_QUEUE_DEPTH_WARNING", {DEFAULTS["waiting_tasks"].warning:g})' in read


def test_defaults_are_those_of_the_backend(app_modules: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in threshold_variables({}):
        monkeypatch.delenv(variable, raising=False)
    bare = app_modules("core.performance_monitor").PerformanceMonitor().thresholds
    for variable, value in threshold_variables({}).items():
        monkeypatch.setenv(variable, value)
    assert app_modules("core.performance_monitor").PerformanceMonitor().thresholds == bare


def test_no_limit_is_one_that_nothing_reaches() -> None:
    variables = threshold_variables(
        {"cpu": {"warning": None, "critical": None}, "response_time_ms": {"critical": None}}
    )
    assert (variables["CPU_WARNING_THRESHOLD"], variables["CPU_CRITICAL_THRESHOLD"]) == ("100", "100")
    assert float(variables["RESPONSE_TIME_CRITICAL_THRESHOLD"]) > 3_600_000
    assert (
        threshold_variables({"response_time_ms": {"warning": "inf", "critical": "inf"}})[
            "RESPONSE_TIME_WARNING_THRESHOLD"
        ]
        == "86400000"
    )


@pytest.mark.parametrize("value", [64, 66, 74, 76, 84, 86])
@pytest.mark.parametrize(
    "absent", [["warning"], ["critical"], ["emergency"], ["warning", "critical"], ["warning", "emergency"]]
)
def test_without_one_of_the_limits_both_still_grade_alike(
    app_modules: Modules, monkeypatch: pytest.MonkeyPatch, absent: t.Sequence[str], value: float
) -> None:
    given = {"memory": dict.fromkeys(absent)}
    for variable, text in threshold_variables(given).items():
        monkeypatch.setenv(variable, text)
    backend = app_modules("core.performance_monitor").PerformanceMonitor().thresholds["memory_percent"]
    host = parse(given)["memory"]
    crossed = [level for level in ("warning", "critical") if value > backend[level]]
    assert (crossed[-1] if crossed else "ok") == {"emergency": "critical"}.get(host.status(value), host.status(value))


def test_a_truth_value_is_no_limit() -> None:
    with pytest.raises(OpsError, match="cpu.warning must be a number, got True"):
        parse({"cpu": {"warning": True}})


@pytest.mark.parametrize("value", ["80", 80, "nonsense", ""])
def test_a_variable_that_says_otherwise_is_refused(value: object) -> None:
    with pytest.raises(
        OpsError,
        match=r"CPU_WARNING_THRESHOLD of the backend differs from the threshold cpu\.warning of its host \(70\)",
    ):
        threshold_variables({}, {"CPU_WARNING_THRESHOLD": value})
    assert (
        threshold_variables({"cpu": {"warning": 80}}, {"CPU_WARNING_THRESHOLD": "80.0"})["CPU_WARNING_THRESHOLD"]
        == "80"
    )


def test_the_ladder_of_the_memory_takes_them() -> None:
    limits = trim.Options(thresholds=parse({"memory": CHANGED["memory"]})["memory"]).thresholds
    assert limits.as_dict() == CHANGED["memory"]
    assert Check(name="memory", status=limits.status(42), value=42).status == "warning"
