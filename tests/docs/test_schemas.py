# SPDX-License-Identifier: GPL-3.0-or-later
"""The published JSON schemas: what the writers write conforms, and what they never write is refused."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import http.server
import json
import re
import threading
import typing as t
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # it has no stubs of its own
import pytest

from tests import schemas
from tests.support.module_run import run_module
from wheels_ops.checks import suite
from wheels_ops.health.thresholds import Thresholds
from wheels_ops.report import alerts
from wheels_ops.rls.audit import audits, formats
from wheels_ops.rls.audit.oracle import Failure
from wheels_ops.rls.model.findings import Finding
from wheels_ops.standalone import monitor, recovery
from wheels_ops.standalone.settings import Recovery, Settings
from wheels_ops.state import history, problems

Document = t.Dict[str, t.Any]
#: A disk is always fuller than nothing, so that one check fails; one is skipped for want of a URL.
CHECKS = suite.Options(subjects=("disk", "redis"), thresholds={"disk": Thresholds(warning=0)})


def schema_of(name: str) -> Document:
    """The schema as it is published."""
    return t.cast(Document, json.loads((schemas.DIRECTORY / f"{name}.schema.json").read_text(encoding="utf-8")))


def faults(name: str, document: t.Any) -> t.List[str]:
    validator = jsonschema.Draft202012Validator(schema_of(name))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> t.Dict[str, t.List[Document]]:
    """What the writers write, by the name of the schema, as a reader gets it."""
    state = tmp_path_factory.mktemp("state")
    written: t.Dict[str, t.List[Document]] = {}
    with receiver() as (url, bodies):
        settings = Settings(
            checks=CHECKS,
            recovery=Recovery(confirm_after=0),
            state_dir=state,
            alerts=tuple(alerts.parse([{"type": "webhook", "url": url, "minimum": "warning"}])),
        )
        written["monitor-report"] = [monitor.ProductionHealthMonitor(settings).report_of(suite.run(CHECKS))]
        monitor.note(settings, written["monitor-report"][0])
        program = recovery.AutomatedRecovery(settings)
        written["recovery-report"] = [program.run(), recovery.AutomatedRecovery(settings, dry_run=True).run()]
    written["alert"] = bodies
    files = [state / monitor.HISTORY, state / history.FILE]
    written["history-record"] = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    # An alert that nobody has got yet stays in the file.
    present = problems.read(state)
    change = problems.Change(problems.BEGUN, present.problems[0], 1753841460.0)
    problems.write(state, alerts.enqueue(present, [change], settings.alerts, "host", 1753841460.0))
    written["problems"] = [json.loads((state / problems.FILE).read_text())]
    written["rls-audit"] = [json.loads(formats.as_json(rls_report()))]
    # As the playbooks deploy and health call them; Ansible has its own form of warnings, and registers their texts.
    health = run_module("health_info", subjects=list(CHECKS.subjects), thresholds={"disk": {"warning": 0}})
    health["warnings"] = []
    reports = state / "reports"
    run_module("health_report", title="host", after=health, dest=str(reports))
    run_module("health_report", title="host", before=health, after=health, dest=str(reports))
    files = [reports / name for name in ("health.json", "before.json", "after.json")]
    written["health-report"] = [json.loads(file.read_text()) for file in files]
    return {name: json.loads(json.dumps(each, default=str)) for name, each in written.items()}


@contextlib.contextmanager
def receiver() -> t.Iterator[t.Tuple[str, t.List[Document]]]:
    """A webhook: its URL, and the bodies that it got."""
    bodies: t.List[Document] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_words: t.Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", bodies
        server.shutdown()


def rls_report() -> formats.Report:
    finding = Finding("recursion", "public.a", "it reads itself", "DROP POLICY x;", details={"path": ["a", "a"]})
    failure = Failure("anon", "public.a", "select", "42P17", "infinite recursion", ["a", "a"], ("anon",))
    audit = audits.Audit(4, [failure], [finding], t.cast("t.Any", None), ["owner"], 1, 1)
    return formats.Report(audit, {finding.identity: "0002.sql"}, ["0003.sql: syntax error"], "1 finding.")


def test_schemas_are_valid_and_not_stale() -> None:
    assert {path: path.read_text(encoding="utf-8") for path in schemas.DIRECTORY.glob("*.json")} == schemas.texts()
    for schema in schemas.schemas().values():
        jsonschema.Draft202012Validator.check_schema(schema)


NAMES = ["health-report", "monitor-report", "recovery-report", "history-record", "problems", "alert", "rls-audit"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_conforms(documents: t.Dict[str, t.List[Document]], name: str) -> None:
    assert documents[name]
    assert [faults(name, document) for document in documents[name]] == [[] for document in documents[name]]


def test_the_documents_have_a_failing_and_a_skipped_check(documents: t.Dict[str, t.List[Document]]) -> None:
    """Otherwise most of the schemas would not be asked."""
    statuses = {check["name"]: check["status"] for check in documents["monitor-report"][0]["checks"]}
    assert statuses == {"disk": "warning", "redis": "skipped"}
    assert [entry["subject"] for entry in documents["problems"][0]["problems"]] == ["disk"]
    assert documents["problems"][0]["pending"] and documents["recovery-report"][0]["recovery_results"]
    # The host of the tests is left alone: a remedy that is not configured is refused.
    assert {each["outcome"] for each in documents["recovery-report"][0]["recovery_results"]} == {"refused"}
    assert {line["action"] for line in documents["history-record"]} == {"monitor", "recover"}


@pytest.mark.parametrize("name", ["monitor-report", "recovery-report"])
def test_a_program_without_a_report_conforms(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = monitor.run if name == "monitor-report" else recovery.run
    assert program(["--json", "--config", str(tmp_path / "missing.json")]) == 3
    assert faults(name, json.loads(capsys.readouterr().out)) == []


#: What a subject says of its own: no schema fixes it.
FREE = ("details", "system_health_summary")


def places(document: t.Any, key: str) -> t.Iterator[Document]:
    """Every object in a document that has the key, but those whose keys are free."""
    if isinstance(document, dict):
        if key in document:
            yield document
        for name, value in document.items():
            if name not in FREE:
                yield from places(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from places(value, key)


#: A key whose value is one of a few words, in every document.
WORDS = {
    "health-report": "status",
    "monitor-report": "status",
    "recovery-report": "status",
    "problems": "state",
    "alert": "event",
    "rls-audit": "severity",
}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("fault", ["missing", "unknown", "type"])
def test_a_wrong_word_is_refused(documents: t.Dict[str, t.List[Document]], name: str, fault: str) -> None:
    """Wherever in the document it is."""
    count = len(list(places(documents[name][0], WORDS[name])))
    assert count
    for number in range(count):
        document = copy.deepcopy(documents[name][0])
        place = list(places(document, WORDS[name]))[number]
        if fault == "missing":
            del place[WORDS[name]]
        else:
            place[WORDS[name]] = "fine" if fault == "unknown" else 5
        assert faults(name, document), number


def test_a_surplus_key_of_a_check_is_refused(documents: t.Dict[str, t.List[Document]]) -> None:
    """Ansible adds keys to a result, and to nothing in it."""
    document = copy.deepcopy(documents["health-report"][0])
    assert faults("health-report", {**document, "ansible_facts": {}}) == []
    document["checks"][0]["surplus"] = 1
    assert faults("health-report", document)


@pytest.mark.parametrize("name", sorted(set(WORDS) - {"health-report"}))
def test_a_surplus_key_is_refused(documents: t.Dict[str, t.List[Document]], name: str) -> None:
    assert faults(name, {**documents[name][0], "surplus": 1})


@pytest.mark.parametrize(
    "change", [{"time": "yesterday"}, {"time": None}, {"checks": {"disk": "fine"}}, {"duration_s": "12"}]
)
def test_a_wrong_history_record_is_refused(documents: t.Dict[str, t.List[Document]], change: Document) -> None:
    assert faults("history-record", {**documents["history-record"][0], **change})


def test_a_field_without_a_description_stops_the_generation() -> None:
    @dataclasses.dataclass(frozen=True)
    class Wider(problems.Problem):
        surplus: str = ""

    with pytest.raises(SystemExit, match=r"Wider: tests/schemas\.py must describe .*: surplus"):
        described = {field.name: "x" for field in dataclasses.fields(problems.Problem)}
        schemas._of_class(Wider, described)


def test_the_page_names_every_schema() -> None:
    page = (schemas.DIRECTORY / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"[\w-]+\.schema\.json", page)) == set(schemas.schemas())
