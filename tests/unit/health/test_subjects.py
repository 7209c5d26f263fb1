# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry of subjects: what derives from it has every subject, and what must be literal says the same."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import typing as t

import pytest
import yaml

from tests import new_check
from tests.sandbox.binaries import REPOSITORY
from tests.support.collection import COLLECTION
from wheels_ops.checks import self_report, suite
from wheels_ops.health import scores, subjects
from wheels_ops.health.subjects import INCIDENTS, NAMES, REGISTRY, Subject
from wheels_ops.health.thresholds import DEFAULTS
from wheels_ops.report import report
from wheels_ops.services import arguments
from wheels_ops.standalone import monitor, program_output
from wheels_ops.standalone.settings import Settings

MODULES = {path.stem for path in (COLLECTION / "plugins/modules").glob("*.py")}


def documentation(module: str) -> t.Dict[str, t.Any]:
    source = (COLLECTION / f"plugins/modules/{module}.py").read_text(encoding="utf-8")
    return t.cast("t.Dict[str, t.Any]", yaml.safe_load(source.split('DOCUMENTATION = r"""')[1].split('"""')[0]))


def loaded(path: str) -> t.Any:
    return yaml.safe_load((COLLECTION / path).read_text(encoding="utf-8"))


def critical(name: str) -> t.Dict[str, t.Any]:
    return {"name": name, "status": "critical", "value": 1, "unit": "", "message": "Bad.", "duration_ms": 1.0}


# -- what derives from it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", REGISTRY, ids=NAMES)
def test_check_is_what_the_suite_runs(subject: Subject) -> None:
    module, _dot, function = f"wheels_ops.{subject.check}".rpartition(".")
    assert suite.MEASURES[subject.name] is getattr(importlib.import_module(module), function)


def test_suite_runs_no_other_check() -> None:
    assert set(suite.MEASURES) == set(NAMES) and len(NAMES) == len(set(NAMES))
    assert suite.SUBJECTS == suite.Options().subjects == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_critical_check_are_never_empty(name: str) -> None:
    (row,) = report.rows({}, {"checks": [critical(name)]}, {})
    assert row["after"] == "critical"


def test_rows_of_a_check_that_is_not_registered() -> None:
    """A result of another release is shown under its own name; it does not drop out."""
    before = {"checks": [critical("of_another_release")]}
    after = {"checks": [{**critical("of_another_release"), "status": "ok"}, critical("memory")]}
    rows = report.rows(before, after, {"of_another_release": "renewed"})
    assert [(row["number"], row["incident"], row["before"], row["after"]) for row in rows] == [
        ("1", "Memory", "-", "critical"),
        ("", "of_another_release", "critical", "ok"),
    ]
    assert rows[1]["done"] == "renewed"


def test_report_rows_follow_the_incident_report() -> None:
    rows = [(number, names) for number, _title, names in subjects.report_rows()]
    assert rows[:11] == [
        ("1", ("memory",)),
        ("2", ("tts",)),
        ("3", ("database", "rls")),
        ("4", ("websocket",)),
        ("5", ("cors",)),
        ("6", ("cpu",)),
        ("7", ("disk",)),
        ("8", ("redis",)),
        ("", ("http",)),
        ("", ("celery",)),
        ("", ("services",)),
    ]
    assert {subject.incident for subject in REGISTRY} - {0} == set(INCIDENTS)


def test_monitor_has_every_check(tmp_path: t.Any) -> None:
    programme = monitor.ProductionHealthMonitor(Settings(state_dir=tmp_path))
    assert tuple(programme.checks) == NAMES
    text = re.sub(r"\s+", " ", monitor.parser().format_help())
    assert all(subject.title in text for subject in REGISTRY) and ", ".join(NAMES) in text
    assert set(program_output.FIRST_VERSION) <= set(NAMES)


def test_scores_take_their_inputs_from_it() -> None:
    for subject in REGISTRY:
        for each in subject.scores:
            assert each.argument in inspect.signature(getattr(scores, each.score)).parameters
    for score in ("performance", "user_experience"):
        arguments = [each.argument for subject in REGISTRY for each in subject.scores if each.score == score]
        assert sorted(arguments) == sorted(inspect.signature(getattr(scores, score)).parameters)


def test_needs_are_options_of_the_suite() -> None:
    options = {field.name for field in dataclasses.fields(suite.Options)}
    for subject in REGISTRY:
        for need in subject.needs:
            assert need.options and set(need.options) <= options, subject.name


def test_thresholds_all_used_and_all_known() -> None:
    assert {name for subject in REGISTRY for name in subject.thresholds} == set(DEFAULTS)


@pytest.mark.parametrize("name", NAMES)
def test_thresholds_are_those_that_the_check_asks_for(name: str) -> None:
    measure = ast.parse(inspect.getsource(suite.MEASURES[name]))
    limits = {
        node.args[0].value
        for node in ast.walk(measure)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "limits"
        and isinstance(node.args[0], ast.Constant)
    }
    assert limits == set(subjects.subject_of(name).thresholds)


@pytest.mark.parametrize("name", NAMES)
def test_remedies_are_those_that_the_check_names(name: str) -> None:
    """Every module that the file of the check names is registered, and every registered one is a module."""
    remedies = set(subjects.subject_of(name).remedies)
    assert remedies <= MODULES
    module = inspect.getmodule(suite.MEASURES[name])
    assert module is not None
    texts = {
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert texts & MODULES <= remedies


def test_remedies_are_those_of_the_plan() -> None:
    """What a check may name is what the recovery plan carries out, under the same names."""
    plan = pytest.importorskip("wheels_ops.remedies.plan", reason="there is no recovery plan in this tree")
    assert {module for remedy in plan.REMEDIES for module in remedy.modules} == {
        module for subject in REGISTRY for module in subject.remedies
    }


def test_with_remedy_gives_the_subjects_in_order() -> None:
    assert subjects.with_remedy("managed_files") == ("cpu", "cors", "websocket")
    assert subjects.with_remedy("nothing") == ()


def test_backend_reports_are_left_out_where_the_suite_measures_itself() -> None:
    assert self_report.MEASURED_OUTSIDE & set(NAMES) == {
        subject.name for subject in REGISTRY if not subject.backend_reports
    }


# -- what must be literal -------------------------------------------------------------------------------------------


def test_health_info_documents_every_subject() -> None:
    assert documentation("health_info")["options"]["subjects"]["choices"] == list(NAMES)


def test_defaults_of_the_role_have_every_subject() -> None:
    assert loaded("roles/monitoring/defaults/main.yml")["monitoring_subjects"] == list(NAMES)


def test_page_of_the_checks_is_written_from_it() -> None:
    assert (REPOSITORY / new_check.PAGE).read_text(encoding="utf-8") == new_check.page(), "run: make checks-page"


def test_argument_specs_of_the_role_have_every_subject() -> None:
    for entry, spec in loaded("roles/monitoring/meta/argument_specs.yml")["argument_specs"].items():
        if "monitoring_subjects" in spec.get("options", {}):
            assert spec["options"]["monitoring_subjects"]["default"] == list(NAMES), entry


def test_done_of_the_report_is_said_of_subjects() -> None:
    (write, *_rest) = loaded("playbooks/tasks/report.yml")
    assert set(write["vars"]["deploy_done"]) <= set(NAMES)


def test_subjects_that_an_inventory_or_scenario_names_exist() -> None:
    """A subject that is renamed must not be left out there without a word."""
    lists = [
        (path, match)
        for directory in ("molecule", "inventories", "playbooks")
        for path in (REPOSITORY / directory).rglob("*.yml")
        for match in re.findall(r"monitoring_subjects: *(\[[^\]]*\])", path.read_text(encoding="utf-8"))
    ]
    assert lists
    for path, match in lists:
        assert set(yaml.safe_load(match)) <= set(NAMES), path


def test_options_are_those_of_the_module_and_of_the_role() -> None:
    """What ``Options`` has can be given to the module, and the role passes it on to module and standalone programs."""
    options = {field.name for field in dataclasses.fields(suite.Options)}
    documented = set(documentation("health_info")["options"]) | {"services", *arguments.MANAGER}
    assert documented == options
    (block,) = loaded("roles/monitoring/tasks/health.yml")
    task = block["block"][0]["wheels.ops.health_info"]
    configuration = loaded("roles/monitoring/vars/main.yml")["monitoring_configuration"]["checks"]
    #: These two have no variable: the defaults of the module are those of the incident report.
    without_variable = {"database_tables", "schemas"}
    assert set(task) == set(configuration) == options - without_variable
